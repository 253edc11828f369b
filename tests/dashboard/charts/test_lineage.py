from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from rankloom_dashboard.charts.lineage import draw_lineage, lineage_info
from rankloom_registry import Lineage, Registry


@pytest.fixture
def lineage(made_once) -> Lineage:
    with Registry.open(made_once.path) as registry:
        return registry.lineage(made_once.best)


def test_the_tree_goes_from_the_base_to_the_export(lineage) -> None:
    info = lineage_info(lineage)
    assert [(node.what, node.depth, node.parent) for node in info.nodes] == [
        ("base", 0, None),
        ("search", 1, 0),
        ("trial", 2, 1),
        ("adapter", 3, 2),
        ("alias", 4, 3),
        ("evaluation", 4, 3),
        ("promotion", 4, 3),
        ("export", 5, 6),
    ]
    assert info.hidden == 0


def test_an_alias_that_was_moved_with_a_promotion_comes_from_it(lineage) -> None:
    (promotion,), (move,) = lineage.promotions, lineage.alias_moves
    together = replace(
        lineage,
        promotions=[replace(promotion, alias="lora-tiny-5@champion")],
        alias_moves=[replace(move, at=promotion.created_at)],
    )
    nodes = lineage_info(together).nodes
    assert nodes[-1].what == "alias"
    assert nodes[nodes[-1].parent].what == "promotion"


def test_an_imported_adapter_comes_from_its_base(lineage) -> None:
    bare = replace(lineage, search=None, trial=None, evaluations=[], promotions=[], alias_moves=[])
    assert [(node.what, node.parent) for node in lineage_info(bare).nodes] == [("base", None), ("adapter", 0)]


def test_of_many_steps_the_last_are_drawn_and_the_rest_counted(lineage) -> None:
    (one,) = lineage.evaluations
    many = [replace(one, evaluation_id=f"e-{n}", created_at=one.created_at + timedelta(days=n)) for n in range(100)]
    info = lineage_info(replace(lineage, evaluations=many[::-1]), most=20)
    assert len(info.nodes) == 20
    assert info.hidden == len(many) + 3 - 16
    assert info.nodes[-1].id == "e-99"
    assert all(node.parent is None or node.parent < place for place, node in enumerate(info.nodes))


def test_an_export_whose_promotion_is_not_drawn_hangs_on_the_adapter(lineage) -> None:
    info = lineage_info(lineage, most=5)
    assert [node.what for node in info.nodes] == ["base", "search", "trial", "adapter", "export"]
    assert (info.nodes[-1].parent, info.nodes[-1].depth, info.hidden) == (3, 4, 3)


def test_text_of_others_stays_text_and_is_cut(lineage) -> None:
    (promotion,) = lineage.promotions
    hostile = replace(promotion, reason="<a href='http://evil.example'>x</a>" + "y" * 1_000_000)
    drawn = draw_lineage(lineage_info(replace(lineage, promotions=[hostile]))).to_json()
    assert len(drawn) < 50_000
    assert "<a " not in drawn and "\\u003ca " not in drawn
    assert "&lt;a " in drawn or "\\u0026lt;a " in drawn
