from __future__ import annotations

import json

import pytest

from rankloom_dashboard.charts.module_heatmap import MOST_ROWS, draw_module_heatmap, module_heatmap_info, place
from rankloom_registry import ModuleWeights


def module(name: str, *, norm: float = 1.0, rank: float = 2.0, dead: bool = False) -> ModuleWeights:
    return ModuleWeights(
        module=name,
        shape=(8, 4),
        r=4,
        effective_rank=rank,
        frobenius_norm=norm,
        spectral_norm=norm / 2,
        relative_norm=None,
        dead=dead,
    )


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("model.layers.3.self_attn.q_proj", ("model.layers", 3, "self_attn.q_proj")),
        ("transformer.h.11.attn.c_attn", ("transformer.h", 11, "attn.c_attn")),
        ("model.layers.3.mlp.experts.7.gate_proj", ("model.layers", 3, "mlp.experts.7.gate_proj")),
        ("0.weight", ("", 0, "weight")),
        ("lm_head", ("", None, "lm_head")),
        ("model.layers.3", ("", None, "model.layers.3")),
        ("conv1d.x2.y", ("", None, "conv1d.x2.y")),
    ],
)
def test_a_module_is_placed_by_the_first_number_in_its_name(name: str, parts: tuple[str, int | None, str]) -> None:
    assert place(name) == parts


def test_layers_are_columns_and_what_is_in_none_has_a_row_and_a_column_of_its_own() -> None:
    info = module_heatmap_info(
        [
            module("lm_head", norm=9),
            module("model.layers.10.self_attn.q_proj", norm=3),
            module("model.layers.2.self_attn.q_proj", norm=2),
            module("model.layers.2.mlp.up_proj", norm=4),
        ],
        "frobenius_norm",
    )
    assert info.layers == ("2", "10", "–")
    assert info.kinds == ("self_attn.q_proj", "mlp.up_proj", "lm_head")
    assert info.values == ((2, 3, None), (4, None, None), (None, None, 9))
    assert info.told[1][1] == ""
    assert not info.merged


def test_experts_have_rows_of_their_own_until_there_are_too_many() -> None:
    def experts(count: int) -> list[ModuleWeights]:
        return [
            module(f"model.layers.{layer}.mlp.experts.{expert}.up_proj", rank=expert)
            for layer in (0, 1)
            for expert in range(count)
        ]

    few = module_heatmap_info(experts(8), "effective_rank")
    assert len(few.kinds) == 8
    assert few.values[7] == (7, 7)
    many = module_heatmap_info([*experts(MOST_ROWS + 1), module("model.layers.0.self_attn.q_proj")], "effective_rank")
    assert many.merged
    assert many.kinds == ("mlp.experts.*.up_proj", "self_attn.q_proj")
    assert many.values[0] == (MOST_ROWS / 2, MOST_ROWS / 2)
    assert many.told[0][0].startswith(f"mean of {MOST_ROWS + 1} modules")


def test_two_stacks_of_layers_do_not_share_a_row() -> None:
    info = module_heatmap_info(
        [module("vision.blocks.0.attn.qkv", norm=1), module("text.layers.0.attn.qkv", norm=2)], "frobenius_norm"
    )
    assert dict(zip(info.kinds, info.values, strict=True)) == {
        "vision.blocks.attn.qkv": (1,),
        "text.layers.attn.qkv": (2,),
    }


def test_a_dead_module_is_an_empty_cell_that_says_so() -> None:
    info = module_heatmap_info([module("m.0.a"), module("m.1.a", norm=0, dead=True)], "effective_rank")
    assert info.values == ((2.0, None),)
    assert info.told[0][1].endswith("dead")


def test_names_stay_text() -> None:
    name = "m.0.<b>x</b><a href='http://evil.example'>y</a>"
    drawn = json.dumps(
        draw_module_heatmap(module_heatmap_info([module(name)], "frobenius_norm")).to_plotly_json(), default=str
    )
    assert "<b>" not in drawn and "<a" not in drawn and "&lt;b&gt;" in drawn


def test_nothing_is_an_empty_figure() -> None:
    info = module_heatmap_info([], "frobenius_norm")
    assert (info.kinds, info.layers, info.values) == ((), (), ())
    draw_module_heatmap(info)
