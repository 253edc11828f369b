"""The benchmarks run as they are written down, on a base of two layers; what they measure there means nothing."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def load() -> Iterator[Any]:
    """Imports a module of the benchmarks, as Python does for a script of that folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(BENCHMARKS)
        yield importlib.import_module


@pytest.fixture(scope="module")
def document(load: Any, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run of the engines in one process: two trials of two ranks, in every mode, with two seeds."""
    run = ["throughput", "--model", str(tiny_model), "--slots", "2", "--configurations", "2", "--steps", "3"]
    small = ["--length", "16", "--ranks", "2", "4", "--seeds", "3", "4", "--compute-dtype", "float32", "--no-separate"]
    output = tmp_path_factory.mktemp("throughput") / "run.json"
    load("search_throughput").main([*run, *small, "--output", str(output)])
    read: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    return read


def test_every_mode_trains_the_same_trials_and_the_modes_take_turns(document: dict[str, Any]) -> None:
    turns = [(sample["seed"], sample["mode"]) for sample in document["samples"]]
    assert turns == [
        *[(3, mode) for mode in ("sequential", "lane-1", "packed")],
        *[(4, mode) for mode in ("lane-1", "packed", "sequential")],
    ]
    assert {sample["tokens"] for sample in document["samples"]} == {2 * 3 * 16}
    assert {len(sample["eval_loss"]) for sample in document["samples"]} == {2}
    # The modes must agree on what they measure, and trials of different ranks or seeds must not.
    assert document["largest_difference"]["train_loss"] < 1e-4
    assert document["largest_difference"]["eval_loss"] < 1e-4
    losses = [loss for sample in document["samples"] for loss in sample["eval_loss"]]
    assert len({round(loss, 5) for loss in losses}) > 1


def test_ratios_are_taken_seed_by_seed(document: dict[str, Any]) -> None:
    speed = {(s["mode"], s["seed"]): s["tokens_per_second"] for s in document["samples"]}
    each = sorted(speed["packed", seed] / speed["sequential", seed] for seed in (3, 4))
    found = document["ratios"]["packed/sequential"]
    assert [found["min"], found["max"]] == pytest.approx(each)
    assert found["median"] == pytest.approx(sum(each) / 2)


def test_the_figure_shows_every_mode_with_its_ratio(load: Any, document: dict[str, Any]) -> None:
    figure = load("throughput_figure")
    panel = figure.panel(document)
    assert [bar.mode for bar in panel.bars] == ["sequential", "lane-1", "packed"]
    drawn = ElementTree.fromstring(figure.draw([panel, panel]))
    bars = drawn.findall("{http://www.w3.org/2000/svg}rect")
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert len(widths) == 6 and widths[:3] == widths[3:]
    assert widths.index(max(widths[:3])) == max(range(3), key=lambda index: panel.bars[index].median)
    assert f"({panel.bars[2].ratio:.2f}×)" in figure.draw([panel])


def test_a_grid_has_every_point_once(load: Any) -> None:
    world = load("_world")
    points = world.grid(world.axes(12, [4, 8, 16]))
    assert len({(point["r"], point["learning_rate"]) for point in points}) == len(points) == 12
    assert {point["lora_alpha"] for point in points} == {16}


def test_real_text_fills_every_row(load: Any, tiny_model: Path, tmp_path: Path) -> None:
    from rankloom.models import load_tokenizer

    load("_world").write_text_rows(tmp_path / "rows.jsonl", length=64)
    tokenizer = load_tokenizer(tiny_model)
    rows = [json.loads(line)["text"] for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) > 100 and min(len(tokenizer(row)["input_ids"]) for row in rows[:50]) >= 64


def test_random_weights_make_a_base_that_trains_and_reads_text(load: Any, tmp_path: Path) -> None:
    from rankloom.models import leaf_modules, load_tokenizer, resolve_base

    shape = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 300,
    }
    load("_world").write_random_llama(tmp_path / "llama", shape)
    assert resolve_base(str(tmp_path / "llama")).path == tmp_path / "llama"
    assert "model.layers.0.self_attn.q_proj" in leaf_modules(tmp_path / "llama")
    tokenizer = load_tokenizer(tmp_path / "llama")
    assert tokenizer.decode(tokenizer("naïve text")["input_ids"]) == "naïve text"


def test_the_engines_are_timed_without_ray() -> None:
    # On a machine that has only what training needs.
    program = (
        "import sys; sys.modules['ray'] = None; sys.path.insert(0, 'benchmarks'); import search_throughput, _engines"
    )
    subprocess.run([sys.executable, "-c", program], cwd=BENCHMARKS.parent, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["search", "winner"])
def test_searches_of_the_same_grid_agree(tiny_model: Path, tmp_path: Path, part: str) -> None:
    command = [sys.executable, "benchmarks/search_throughput.py", part, "--model", str(tiny_model), "--seeds", "0"]
    small = ["--configurations", "2", "--ranks", "2", "4", "--length", "16", "--eval-rows", "4", "--slots", "2"]
    steps = ["--steps", "4", "--eval-steps", "2", "--compute-dtype", "float32", "--output", str(tmp_path / "run.json")]
    subprocess.run([*command, *small, *steps], cwd=BENCHMARKS.parent, check=True, timeout=500)
    document = json.loads((tmp_path / "run.json").read_text(encoding="utf-8"))
    for sample in document["samples"]:
        assert [trial["r"] for trial in sample["trials"]] == [2, 4]
        assert sample["wall_s"] > 0
    if part == "search":
        assert [sample["mode"] for sample in document["samples"]] == ["tune", "tune-reuse", "rankloom"]
        assert document["largest_difference"]["eval_loss"] < 1e-4
    else:
        first, second = document["best"]
        assert first["steps"] == 4 and second["eval_loss"] == pytest.approx(first["eval_loss"], rel=1e-2)


@pytest.mark.slow
def test_each_mode_has_a_process_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/search_throughput.py", "throughput", "--model", str(tiny_model)]
    small = ["--slots", "2", "--steps", "2", "--length", "16", "--seeds", "0", "--modes", "sequential", "packed"]
    run = subprocess.run(
        [*command, *small, "--separate"], cwd=BENCHMARKS.parent, check=True, capture_output=True, text=True
    )
    document = json.loads(run.stdout)
    assert document["peak_memory"] == "of each mode's own process"
    assert set(document["medians"]) == {"sequential", "packed"}
