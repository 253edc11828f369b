"""One table of what users get wrong in a search: each is one message, and leaves nothing behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from rankloom_registry import Registry

Values = dict[str, Any]


def write(name: str, text: str) -> Callable[[Path], None]:
    def prepare(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)

    return prepare


def folder_without_a_model(folder: Path) -> None:
    (folder / "base").mkdir()
    (folder / "base" / "readme.txt").write_text("nothing here")


def model_without_weights(folder: Path) -> None:
    folder_without_a_model(folder)
    (folder / "base" / "config.json").write_text(json.dumps({"model_type": "llama"}))


def run_of_that_name(folder: Path) -> None:
    run = folder / "registry.runs" / "mine"
    run.mkdir(parents=True)
    (run / "search.json").write_text("{}")


def nothing(folder: Path) -> None:
    pass


# What is wrong: what lies in the folder, what the search file says, the flags, and what the message must name.
BAD_INPUT: dict[str, tuple[Callable[[Path], None], Values, tuple[str, ...], tuple[str, ...]]] = {
    "no search file": (nothing, {"search file": "none.yaml"}, (), ("none.yaml", "give the path of a YAML file")),
    "no dataset": (nothing, {"dataset": "none.jsonl"}, (), ("'none.jsonl'", "check the path")),
    "an empty dataset": (write("empty.jsonl", ""), {"dataset": "empty.jsonl"}, (), ("empty.jsonl", "at least 2")),
    "a dataset without rows": (
        write("rows.csv", "prompt,completion\n"),
        {"dataset": "rows.csv"},
        (),
        ("rows.csv", "holds no rows"),
    ),
    "a single row": (
        write("one.jsonl", '{"text": "the girl"}\n'),
        {"dataset": "one.jsonl"},
        (),
        ("one.jsonl has 1", "give eval_dataset"),
    ),
    "a torn dataset": (
        write("torn.jsonl", '{"text": "the girl"}\n{"text": "the'),
        {"dataset": "torn.jsonl"},
        (),
        ("torn.jsonl", "mend the file"),
    ),
    "wrong columns": (
        write("rows.jsonl", '{"question": "a", "answer": "b"}\n'),
        {"dataset": "rows.jsonl"},
        (),
        ("rows.jsonl", "found: answer, question", "'prompt' and 'completion'"),
    ),
    "half of the columns": (
        write("rows.jsonl", '{"prompt": "a", "answer": "b"}\n'),
        {"dataset": "rows.jsonl"},
        (),
        ("lacks the column 'completion'", "found: answer, prompt"),
    ),
    "an empty completion": (
        write("rows.jsonl", '{"prompt": "a", "completion": "b"}\n{"prompt": "a", "completion": ""}\n'),
        {"dataset": "rows.jsonl"},
        (),
        ("row 1: 'completion'", "mend or remove the row"),
    ),
    "rows that are too long": (
        write(
            "rows.jsonl",
            json.dumps({"prompt": "the girl " * 50, "completion": "boy"})
            + "\n"
            + '{"prompt": "the", "completion": " boy"}\n',
        ),
        {"dataset": "rows.jsonl", "training": {"max_length": 8}},
        (),
        ("max_length=8", "raise max_length"),
    ),
    "a dataset of the hub, offline": (
        nothing,
        {"dataset": "no-such-owner/no-such-rows"},
        (),
        ("no-such-owner/no-such-rows", "hub id that can be reached"),
    ),
    "unknown preset": (nothing, {"space": "loora"}, (), ("'loora'", "lora")),
    "a space file that is not there": (nothing, {"space": "none.yaml"}, (), ("none.yaml",)),
    "a broken space": (
        write("space.yaml", "name: mine\nparameters:\n  r: {choice: [0]}\n"),
        {"space": "space.yaml"},
        (),
        ("r", "0"),
    ),
    "unknown setting": (nothing, {"num_sample": 3}, (), ("'num_sample'", "did you mean 'num_samples'?")),
    "unknown training setting": (
        nothing,
        {"training": {"max_step": 3}},
        (),
        ("'training.max_step'", "did you mean 'max_steps'?"),
    ),
    "a setting out of bounds": (nothing, {"num_samples": 0}, (), ("num_samples", "got 0")),
    "unknown scheduler": (nothing, {"scheduler": "ashaa"}, (), ("scheduler", "'ashaa'", "'asha'")),
    "unknown sampler": (nothing, {"sampler": "tpee"}, (), ("sampler", "'tpee'", "'tpe'")),
    "unknown learning-rate schedule": (
        nothing,
        {"training": {"lr_scheduler_type": "cosin"}},
        (),
        ("lr_scheduler_type", "'cosin'", "cosine"),
    ),
    "unknown optimizer": (nothing, {"training": {"optim": "adamv"}}, (), ("optim", "'adamv'", "adamw_torch")),
    "a registry below a file": (
        write("file", ""),
        {"registry": "file/registry.duckdb"},
        (),
        ("file", "exists and can"),
    ),
    "a registry in a folder that is not there": (
        nothing,
        {"name": "refused"},  # one that is made up holds the second at which it was
        ("--registry", "none/registry.duckdb"),
        ("none", "folder that exists"),
    ),
    "a registry of another program": (
        write("registry.duckdb", "not a database"),
        {},
        (),
        ("registry.duckdb", "not"),
    ),
    "a run folder of other files": (
        write("mine/thesis.txt", "years of work"),
        {"storage_path": ".", "name": "mine"},
        (),
        ("mine", "taken by other files"),
    ),
    "a registry of another suffix": (nothing, {"registry": "runs.db"}, (), ("'runs.db'", "rename it")),
    "no model": (nothing, {"model_name_or_path": "./none"}, (), ("'./none'", "no such folder")),
    "a folder without a model": (
        folder_without_a_model,
        {"model_name_or_path": "base"},
        (),
        ("no config.json", "point at the folder"),
    ),
    "a model without weights": (
        model_without_weights,
        {"model_name_or_path": "base"},
        (),
        ("no safetensors weights", "save_pretrained()"),
    ),
    "a model of the hub, offline": (
        nothing,
        {"model_name_or_path": "no-such-owner/no-such-model"},
        (),
        ("'no-such-owner/no-such-model'", "check the spelling and the network"),
    ),
    "a file that is not GGUF": (
        write("model.gguf", "GGML" + " " * 60),
        {"model_name_or_path": "model.gguf"},
        (),
        ("model.gguf", "not a GGUF file"),
    ),
    "a target module that the model lacks": (
        nothing,
        {"space": {"name": "mine", "parameters": {"target_modules": {"choice": ["attention", "c_attn"]}}}},
        (),
        ("'c_attn'", "q_proj"),
    ),
    "a name that is taken": (run_of_that_name, {"name": "mine"}, (), ("'mine'", "--resume", "--name")),
    "a name that is a path": (nothing, {"name": "../mine"}, (), ("'../mine'", "choose another")),
    "resume without a name": (nothing, {}, ("--resume",), ("--resume needs the search's name", "--name")),
    "resume of nothing": (nothing, {}, ("--resume", "--name", "mine"), ("mine'", "start it without --resume")),
    "a flag that is no number": (nothing, {}, ("--num-samples", "many"), ("--num-samples", "valid integer")),
}


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
        if path.suffix != ".lock"  # an empty file beside a registry, by which programs take turns
    }


@pytest.mark.parametrize(("prepare", "values", "flags", "fragments"), BAD_INPUT.values(), ids=BAD_INPUT)
def test_bad_input_is_one_message_and_leaves_nothing(
    rankloom: Callable[..., Any],
    tmp_path: Path,
    tiny_model: Path,
    rows_file: Path,
    prepare: Callable[[Path], None],
    values: Values,
    flags: tuple[str, ...],
    fragments: tuple[str, ...],
) -> None:
    prepare(tmp_path)
    settings = {"model_name_or_path": str(tiny_model), "dataset": str(rows_file), "num_samples": 2, **values}
    file = settings.pop("search file", "search.yaml")
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(settings))
    before = snapshot(tmp_path)
    said = set()
    for dry in ((), ("--dry-run",)):  # a plan refuses what the search would refuse
        done = rankloom("search", file, *flags, *dry)
        assert done.code == (2 if "--num-samples" in flags else 1)
        assert done.out == ""
        messages = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(messages) == 1, done.err
        assert done.err.splitlines()[-1] == messages[0] and "Traceback" not in done.err
        assert "--debug" not in messages[0], "not a message of ours"
        assert [fragment for fragment in fragments if fragment not in messages[0]] == [], messages[0]
        assert snapshot(tmp_path) == before
        said.add(messages[0])
    assert len(said) == 1


def test_a_refused_registry_costs_no_preparation(
    rankloom: Callable[..., Any], tmp_path: Path, tiny_model: Path, rows_file: Path
) -> None:
    (tmp_path / "search.yaml").write_text(
        yaml.safe_dump({"model_name_or_path": str(tiny_model), "dataset": str(rows_file)})
    )
    (tmp_path / "registry.duckdb").write_text("not a database")
    done = rankloom("search", "search.yaml")
    assert done.code == 1 and "fingerprinting" not in done.err and "tokenising" not in done.err, done.err


def test_a_refused_search_leaves_an_older_registry_as_it_was(
    rankloom: Callable[..., Any], world: Any, tmp_path: Path
) -> None:
    (tmp_path / "search.yaml").write_text(yaml.safe_dump({"model_name_or_path": "./none", "dataset": "none.jsonl"}))
    before = snapshot(world.registry.parent)
    assert rankloom("search", "search.yaml", "--registry", world.registry).code == 1
    assert snapshot(world.registry.parent) == before
    assert len(Registry.open(world.registry).searches()) == 1
    shutil.rmtree(world.registry.parent)
