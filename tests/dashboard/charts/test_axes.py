from __future__ import annotations

import math
from pathlib import Path

import pytest

from rankloom_dashboard.charts.axes import axes
from rankloom_dashboard.charts.samples import Sample


@pytest.fixture
def told(trial, search):
    def tell(*params: dict[str, object], space: object = None):
        found = [Sample(trial=trial(number, params=each), value=1.0) for number, each in enumerate(params)]
        return {axis.name: axis for axis in axes(search(config={"space": space}), found)}

    return tell


def test_a_constant_parameter_is_no_axis(told) -> None:
    assert told() == told({"r": 8}) == told({"r": 8, "seed": 0}, {"r": 8, "seed": 0}) == {}
    assert list(told({"r": 8, "seed": 0}, {"r": 16, "seed": 0})) == ["r"]


def test_the_space_says_what_is_logarithmic_and_in_which_order_choices_come(told) -> None:
    space = {
        "parameters": {
            "learning_rate": {"loguniform": [1e-4, 1e-3]},
            "lora_dropout": {"uniform": [0.0, 0.1]},
            "target_modules": {"choice": ["mlp", "attention", "all-linear"]},
        }
    }
    one = {"learning_rate": 2e-4, "lora_dropout": 0.001, "target_modules": "all-linear"}
    two = {"learning_rate": 3e-4, "lora_dropout": 0.09, "target_modules": "mlp"}
    found = told(one, two, space=space)
    assert found["learning_rate"].log
    assert not found["lora_dropout"].log
    assert found["target_modules"].labels == ("mlp", "all-linear")
    assert [found["target_modules"].place(value) for value in ("mlp", "all-linear", "nowhere")] == [0, 1, None]


def test_without_a_space_the_values_say_it(told) -> None:
    found = told({"r": 4, "x": 1.0, "y": 0}, {"r": 64, "x": 2.0, "y": 100})
    assert found["r"].log
    assert not found["x"].log
    assert not found["y"].log  # it has a zero
    assert found["r"].share(16) == pytest.approx(0.5)


def test_a_few_numbers_that_were_chosen_from_are_categories_in_their_order(told) -> None:
    few = told(*({"r": r} for r in (16, 8, 16, 8)), space={"parameters": {"r": {"choice": [8, 16, 32]}}})["r"]
    assert few.labels == ("8", "16")
    assert few.place(16) == 1
    many = told(*({"r": r} for r in (4, 8, 16, 32) * 2))["r"]
    assert many.labels == ()
    assert many.choices == (4, 8, 16, 32)
    assert many.layout()["ticktext"] == ["4", "8", "16", "32"]


def test_values_of_several_kinds_are_categories(told) -> None:
    found = told({"a": True, "m": ["q", "k"], "n": math.nan}, {"a": False, "m": "all", "n": 1.0}, {"a": None})
    assert found["a"].labels == ("yes", "no", "–")
    assert found["m"].labels == ("q + k", "all")
    assert found["m"].place(["q", "k"]) == 0
    assert found["m"].place(None) is None
    assert found["n"].labels


def test_names_that_look_alike_when_cut_stay_apart_and_are_text(told) -> None:
    found = told({"<b>": "x" * 40 + "1"}, {"<b>": "x" * 40 + "2"})
    assert found["<b>"].title == "&lt;b&gt;"
    assert len(set(found["<b>"].labels)) == 2
    assert all(len(label) < 40 for label in found["<b>"].labels)


def test_a_path_in_a_search_is_never_opened(told, tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text("name: x\nparameters:\n  x: {uniform: [0, 1]}\n  learning_rate: {uniform: [0.0, 1.0]}\n")
    assert told({"learning_rate": 1e-5}, {"learning_rate": 1e-2}, space=str(file))["learning_rate"].log
    assert told({"learning_rate": 1e-5}, {"learning_rate": 1e-2}, space={"parameters": 3})["learning_rate"].log
