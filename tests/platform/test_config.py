from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from rankloom.config import QuantizationConfig, SearchConfig, TrainingConfig, load_config, parse_config
from rankloom.errors import ConfigError

LEAST = {"model_name_or_path": "base", "dataset": "train.jsonl"}


@pytest.fixture
def search_file(tmp_path: Path) -> Path:
    file = tmp_path / "search.yaml"
    file.write_text("model_name_or_path: base\ndataset: train.jsonl\nnum_samples: 3\nregistry: yaml.duckdb\n")
    return file


def test_defaults_are_the_papers() -> None:
    config = parse_config(LEAST)
    assert config.quantization == QuantizationConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype="auto"
    )
    assert config.training.max_grad_norm == 0.3
    assert (config.space, config.metric, config.mode, config.seed) == ("lora", "eval_loss", "min", 0)


@pytest.mark.parametrize("model", [SearchConfig, TrainingConfig, QuantizationConfig])
def test_every_field_is_explained_in_one_sentence(model: type[Any]) -> None:
    explained = {name: field.description or "" for name, field in model.model_fields.items()}
    own = {name: text for name, text in explained.items() if name not in ("training", "quantization")}
    assert [name for name, text in own.items() if not text.endswith(".") or ". " in text] == []


REFUSED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "unknown, near one": ({"num_sample": 3}, ("'num_sample'", "did you mean 'num_samples'")),
    "unknown, near none": ({"zzz": 3}, ("'zzz'", "known: model_name_or_path, dataset")),
    "unknown in training": ({"training": {"max_step": 3}}, ("'training.max_step'", "did you mean 'max_steps'")),
    "unknown in quantization": ({"quantization": {"load_4bit": True}}, ("did you mean 'load_in_4bit'",)),
    "missing": ({"dataset": ...}, ("'dataset' is required",)),
    "too few": ({"num_samples": 0}, ("num_samples", "greater than or equal to 1", "got 0")),
    "too many": ({"num_samples": 100_001}, ("num_samples", "100000", "got 100001")),
    "fraction": ({"eval_fraction": 1.0}, ("eval_fraction", "less than 1", "got 1.0")),
    "seed": ({"seed": -1}, ("seed", "greater than or equal to 0", "got -1")),
    "length": ({"training": {"max_length": 4}}, ("training.max_length", "got 4")),
    "clipping": ({"training": {"max_grad_norm": 0}}, ("training.max_grad_norm", "greater than 0", "got 0")),
    "not a number": ({"training": {"max_steps": "many"}}, ("training.max_steps", "valid integer", "got 'many'")),
    "packing": ({"training": {"packing": True}}, ("packing must be false",)),
    "data type": ({"quantization": {"bnb_4bit_quant_type": "int4"}}, ("'nf4' or 'fp4'", "got 'int4'")),
    "two precisions": ({"quantization": {"load_in_8bit": True}}, ("load_in_4bit and load_in_8bit cannot both",)),
    "name of a path": ({"name": "../up"}, ("name must match", "'../up'", "choose another")),
    "registry suffix": ({"registry": "runs.db"}, ("must end in .duckdb", "'runs.db'")),
    "sampler": ({"sampler": "tpee"}, ("sampler must be 'tpe', 'random' or an object", "got 'tpee'")),
    "scheduler": ({"scheduler": "ashaa"}, ("scheduler must be 'asha', 'median', 'fifo' or an", "got 'ashaa'")),
    "schedule": ({"training": {"lr_scheduler_type": "cosin"}}, ("lr_scheduler_type", "'cosine'", "got 'cosin'")),
    "optimizer": ({"training": {"optim": "adamv"}}, ("training.optim", "'adamw_torch'", "got 'adamv'")),
    "engine": ({"engine": "packd"}, ("engine", "'packed' or 'trl'", "got 'packd'")),
    "slots": ({"engine": "trl", "slots_per_lane": 2}, ("one trial at a time", "got slots_per_lane 2", "remove one")),
    "no slots": ({"slots_per_lane": 0}, ("slots_per_lane", "greater than or equal to 1", "got 0")),
    "direction": ({"mode": "max"}, ("mode must be 'min'",)),
    "two at once": ({"num_samples": 0, "seeds": 1}, ("num_samples", "did you mean 'seed'")),
}


@pytest.mark.parametrize(("change", "fragments"), REFUSED.values(), ids=REFUSED)
def test_refused_with_rule_value_and_next_step(change: dict[str, Any], fragments: tuple[str, ...]) -> None:
    values = {name: value for name, value in {**LEAST, **change}.items() if value is not ...}
    with pytest.raises(ConfigError) as caught:
        parse_config(values, source="search.yaml")
    message = str(caught.value)
    assert message.startswith("search.yaml: ")
    assert [fragment for fragment in fragments if fragment not in message] == []
    assert "\n" not in message
    assert isinstance(caught.value, ValueError) and str(pickle.loads(pickle.dumps(caught.value))) == message


def test_samplers_and_schedulers_may_be_objects_and_their_records() -> None:
    sampler = object()
    assert parse_config({**LEAST, "sampler": sampler, "scheduler": None}).sampler is sampler
    assert parse_config({**LEAST, "sampler": "<GridSampler>", "scheduler": "<HyperBandScheduler>"})


def test_frozen() -> None:
    config = parse_config(LEAST)
    with pytest.raises(ValidationError, match="frozen"):
        config.num_samples = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="frozen"):
        config.training.max_steps = 3  # type: ignore[misc]


def test_a_flag_beats_the_environment_beats_the_file_beats_the_default(
    search_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANKLOOM_REGISTRY", raising=False)
    assert parse_config(LEAST).registry == Path("registry.duckdb")
    assert load_config(search_file).registry == Path("yaml.duckdb")
    monkeypatch.setenv("RANKLOOM_REGISTRY", "environment.duckdb")
    assert load_config(search_file).registry == Path("environment.duckdb")
    config = load_config(search_file, {"registry": "flag.duckdb", "num_samples": None, "name": "mine"})
    assert config.registry == Path("flag.duckdb")
    # A flag that was not given is None, and changes nothing.
    assert (config.num_samples, config.name) == (3, "mine")


def test_run_folders_lie_beside_the_registry(tmp_path: Path) -> None:
    assert parse_config({**LEAST, "registry": tmp_path / "a.duckdb"}).storage == tmp_path / "a.runs"
    assert parse_config({**LEAST, "storage_path": tmp_path / "runs"}).storage == tmp_path / "runs"


BROKEN_FILES: dict[str, tuple[bytes, str]] = {
    "not YAML": (b"model_name_or_path: [base\n", "is not valid YAML"),
    "a list": (b"- model_name_or_path\n", "must hold a mapping of settings, got list"),
    "empty": (b"", "must hold a mapping of settings, got NoneType"),
    "not text": (b"\xff\xfe\x00", "cannot read the search file"),
    "a key that is no text": (b"model_name_or_path: base\ndataset: d\n1: 2\n", "1"),
    "code": (b"!!python/object/apply:os.system ['true']\n", "is not valid YAML"),
}


@pytest.mark.parametrize(("content", "fragment"), BROKEN_FILES.values(), ids=BROKEN_FILES)
def test_broken_search_file(tmp_path: Path, content: bytes, fragment: str) -> None:
    file = tmp_path / "search.yaml"
    file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert fragment in str(caught.value) and str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_search_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no search file at .*; *give|no search file at .*: give"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="cannot read the search file"):
        load_config(tmp_path)


def test_a_configuration_survives_json(tmp_path: Path) -> None:
    config = parse_config({**LEAST, "training": {"max_steps": 7}, "registry": tmp_path / "a.duckdb"})
    assert parse_config(json.loads(config.model_dump_json())) == config


def test_every_schedule_and_optimizer_is_one_of_transformers(tmp_path: Path) -> None:
    import torch
    from transformers import get_scheduler
    from transformers.training_args import OptimizerNames

    from rankloom.config import LearningRateSchedule, Optimizer

    assert set(get_args(Optimizer)) <= {name.value for name in OptimizerNames}
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    for name in get_args(LearningRateSchedule):
        schedule = get_scheduler(name, optimizer, num_warmup_steps=1, num_training_steps=4)
        assert schedule.get_last_lr() == [0.1 if name == "constant" else 0.0]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"eval_steps": 4}, [4, 8, 12, 16, 20, 24, 28, 30]),
        ({"eval_steps": 3, "eval_strategy": "rungs"}, [3, 9, 27, 30]),
        ({"eval_strategy": "rungs"}, [7, 21, 30]),
        ({"eval_steps": 30}, [30]),
    ],
)
def test_a_run_is_evaluated_where_it_is_said(settings: dict[str, Any], steps: list[int]) -> None:
    training = parse_config({**LEAST, "training": settings}).training
    assert [step for step in range(1, 31) if training.evaluates_at(step, 30)] == steps
