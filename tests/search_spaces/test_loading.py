"""Where a space comes from, and what is said when it cannot be had."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from rankloom_spaces import SpaceError, load_space, preset_names

LORA = """\
name: lora
parameters:
  r: {choice: [8, 16, 32, 64]}
  lora_alpha: {rule: fixed, choice: [16, 32]}
  learning_rate: {loguniform: [3.0e-5, 1.0e-3]}
  target_modules: {choice: [attention-qv, attention, mlp, all-linear]}
  lora_dropout: {choice: [0.0, 0.05]}
"""


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_under_its_own_name(name: str) -> None:
    assert load_space(name).name == name


def test_the_default_preset_is_the_documented_one() -> None:
    assert {"lora", "lora-small", "lora-wide"} <= set(preset_names())
    assert load_space("lora").to_dict() == yaml.safe_load(LORA)
    assert load_space("lora-wide").alpha_rule == "rslora"


def test_a_file_by_string_and_by_path(tmp_path: Path) -> None:
    path = tmp_path / "wide.yml"
    path.write_text(LORA, encoding="utf-8")
    assert load_space(str(path)) == load_space(path) == load_space("lora")


def test_a_space_without_a_name_is_named_after_its_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("parameters: {r: 8}", encoding="utf-8")
    assert load_space(path).name == "mine"
    assert load_space({"parameters": {"r": 8}}).name == "custom"


def test_a_space_is_returned_as_it_is() -> None:
    space = load_space("lora")
    assert load_space(space) is space


def test_unquoted_exponents_are_numbers(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("parameters: {learning_rate: {loguniform: [3e-5, 1e-3]}}", encoding="utf-8")
    assert load_space(path).to_dict()["parameters"]["learning_rate"] == {"loguniform": [3e-5, 1e-3]}


def test_an_unknown_preset_names_the_nearest_and_all() -> None:
    with pytest.raises(SpaceError, match=r"'lora-smal' \(did you mean 'lora-small'\?\).*lora, lora-small, lora-wide"):
        load_space("lora-smal")


@pytest.mark.parametrize("name", ["../lora", "lora/../lora", "presets/lora", ""])
def test_a_name_never_becomes_a_path_into_the_package(name: str) -> None:
    with pytest.raises(SpaceError, match="no preset is called"):
        load_space(name)


def test_a_missing_file_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(SpaceError, match=r"readable UTF-8 text, got .*absent\.yaml .*check the path"):
        load_space(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters: {r: [", "must be valid YAML"),
        ("parameters:\n  r: 8\n  r: 16\n", r"'r' is written twice(.|\n)*line 3"),
        ("- r", "must be a mapping with `name` and `parameters`"),
        ("", "got None; see the preset 'lora'"),
        ("name: mine\nparameters: {r: {choice: [4096]}}", "space 'mine': r must be a whole number from 1 to 1024"),
    ],
)
def test_a_broken_file_is_named(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpaceError, match=message) as caught:
        load_space(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "binary.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpaceError, match="readable UTF-8 text"):
        load_space(path)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"parameter": {"r": 8}}, r"unknown key 'parameter' \(did you mean 'parameters'\?\)"),
        ({"r": {"choice": [8]}}, "every parameter stands under `parameters`"),
        ({"name": "mine"}, "`parameters` must be a mapping, got None"),
        ({"parameters": {}}, "at least one parameter"),
        ({"name": "../up", "parameters": {"r": 8}}, r"letters and digits.*got '\.\./up'"),
        ({"name": 2024, "parameters": {"r": 8}}, "got 2024"),
        ({"parameters": {"lora_alpha": {"rule": "time_r", "choice": [1]}}}, "did you mean 'times_r'"),
        ({"parameters": {"lora_alpha": {"rule": ["fixed"], "choice": [1]}}}, "`rule` must be one of fixed"),
        ({"parameters": {8: 8}}, "unknown parameter 8"),
    ],
)
def test_a_broken_mapping_is_refused(data: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        load_space(data)
