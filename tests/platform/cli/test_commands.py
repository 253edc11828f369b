from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from rankloom_registry import Registry

Rankloom = Callable[..., Any]


def commands() -> Iterator[tuple[str, ...]]:
    """Every command there is, as it is typed."""
    from rankloom.cli.main import app

    def walk(node: Any, path: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        yield path
        for name, child in getattr(node, "commands", {}).items():
            yield from walk(child, (*path, name))

    return walk(typer.main.get_command(app), ())


@pytest.mark.parametrize("command", list(commands()), ids=lambda path: " ".join(path) or "rankloom")
def test_every_command_has_help(rankloom: Rankloom, command: tuple[str, ...]) -> None:
    for flag in ("--help", "-h"):
        done = rankloom(*command, flag)
        assert done.code == 0 and done.err == ""
        assert done.out.startswith(f"Usage: {' '.join(('rankloom', *command))} ")
        assert len([line for line in done.out.splitlines() if line.strip()]) > 3


def test_the_fixed_commands_are_there() -> None:
    names = {" ".join(path) for path in commands()}
    assert names >= {"quickstart", "search", "plan", "evaluate", "promote", "doctor", "dashboard"}
    assert names >= {"searches list", "searches show", "searches stop", "searches extend"}
    assert names >= {"spaces list", "spaces show"}
    assert names >= {"adapters list", "adapters show", "adapters compare", "adapters verify", "adapters tag"}
    assert names >= {"adapters alias", "adapters delete", "adapters import", "adapters export-config"}
    assert names >= {"base fingerprint", "base check"}


def test_adapters_are_listed_best_first(rankloom: Rankloom, world: Any) -> None:
    flags = ("--registry", world.registry)
    done = rankloom("adapters", "list", *flags)
    assert done.code == 0 and done.err == ""
    header, *lines = done.out.splitlines()
    assert header.split() == [
        "adapter_id", "name", "status", "eval_loss", "steps", "r", "lora_alpha", "learning_rate", "target_modules"
    ]  # fmt: skip
    assert [line.split()[0] for line in lines] == list(world.adapters)
    found = rankloom("adapters", "list", "--json", *flags)
    assert found.err == "" and [adapter["adapter_id"] for adapter in found.json] == list(world.adapters)
    for options, count in {("--where", "r = 4"): 1, ("--where", "r > 99"): 0, ("--limit", 1): 1}.items():
        assert len(rankloom("adapters", "list", "--json", *options, *flags).json) == count
    turned = rankloom("adapters", "list", "--json", "--order-by", "eval_loss desc", *flags).json
    assert [adapter["adapter_id"] for adapter in turned] == list(reversed(world.adapters))


def test_an_adapter_is_shown(rankloom: Rankloom, world: Any) -> None:
    done = rankloom("adapters", "show", world.adapters[0], "--registry", world.registry)
    assert done.code == 0 and done.err == ""
    assert world.adapters[0] in done.out and "learning curve" in done.out
    found = rankloom("adapters", "show", world.adapters[0], "--json", "--registry", world.registry).json
    assert found.keys() >= {"adapter", "base", "curve", "evaluations", "promotions"}
    assert [at["step"] for at in found["curve"]] == [4, 8, 12]
    assert found["base"]["identity"] == str(world.base)


def test_adapters_are_compared(rankloom: Rankloom, world: Any) -> None:
    done = rankloom("adapters", "compare", *world.adapters, "--registry", world.registry)
    rows = [line.split()[0] for line in done.out.splitlines()[1:] if line.strip()]
    assert done.code == 0 and {"r", "learning_rate", "eval_loss", "seed"} <= set(rows)
    assert "lora_alpha" not in rows and "different bases" not in done.out
    every = rankloom("adapters", "compare", *world.adapters, "--all", "--registry", world.registry)
    assert "lora_alpha" in every.out
    found = rankloom("adapters", "compare", *world.adapters, "--json", "--registry", world.registry).json
    assert found["differences"]["r"] == [4, 2]
    assert rankloom("adapters", "compare", world.adapters[0], "--registry", world.registry).code == 2


def test_an_adapter_is_verified(rankloom: Rankloom, world: Any) -> None:
    flags = (world.adapters[0], "--registry", world.registry)
    assert "every file is what was registered" in rankloom("adapters", "verify", *flags).out
    assert rankloom("adapters", "verify", "--json", *flags).json["verified"] is True
    every = rankloom("adapters", "verify", *flags[1:])
    assert every.code == 0 and every.err == "" and all(adapter in every.out for adapter in world.adapters)
    path = Registry.open(world.registry).adapter(world.adapters[0]).artifact_path
    assert path is not None
    (path / "adapter_config.json").chmod(0o644)
    (path / "adapter_config.json").write_text("{}")
    done = rankloom("adapters", "verify", *flags)
    assert done.code == 1 and done.out == ""
    assert done.err.startswith("error: ") and "adapter_config.json changed" in done.err and done.err.count("\n") == 1
    (path / "adapter_model.safetensors").unlink()
    every = rankloom("adapters", "verify", *flags[1:])
    assert every.code == 1 and every.out == f"{world.adapters[1]}: every file is what was registered\n"
    assert f"error: {world.adapters[0]} (negation): " in every.err and every.err.count("\n") == 1
    found = rankloom("adapters", "verify", "--json", *reversed(world.adapters), *flags[1:])
    assert found.code == 1 and found.json["verified"] is False
    slow, good = found.json["adapters"]
    assert (slow["adapter_id"], slow["verified"], slow["problem"]) == (world.adapters[1], True, None)
    assert (good["adapter_id"], good["verified"]) == (world.adapters[0], False)
    assert "adapter_config.json changed, adapter_model.safetensors is missing" in good["problem"]
    assert rankloom("adapters", "verify", "no-such-adapter", *flags[1:]).code == 1
    rankloom("adapters", "delete", *world.adapters, "--yes", *flags[1:])
    none = rankloom("adapters", "verify", *flags[1:])
    assert (none.code, none.out) == (0, "") and "no adapter" in none.err


def test_searches(rankloom: Rankloom, world: Any) -> None:
    flags = ("--registry", world.registry)
    assert rankloom("searches", "list", *flags).out.splitlines()[1].split()[:4] == [
        "search-1", "negation", "completed", "2/2"
    ]  # fmt: skip
    (found,) = rankloom("searches", "list", "--json", *flags).json
    assert (found["search_id"], found["name"], found["finished_trials"]) == ("search-1", "negation", 2)
    shown = rankloom("searches", "show", "negation", *flags)
    assert shown.code == 0 and all(adapter in shown.out for adapter in world.adapters)
    found = rankloom("searches", "show", "search-1", "--json", *flags).json
    assert [trial["number"] for trial in found["trials"]] == [0, 1]


def test_spaces(rankloom: Rankloom, tmp_path: Path) -> None:
    found = {space["name"]: space["parameters"] for space in rankloom("spaces", "list", "--json").json}
    assert found.keys() >= {"lora", "lora-small", "lora-wide"} and "r" in found["lora"]
    assert all(name in rankloom("spaces", "list").out for name in found)
    shown = rankloom("spaces", "show", "lora")
    (tmp_path / "copy.yaml").write_text(shown.out)
    assert rankloom("spaces", "show", "copy.yaml", "--json").json == rankloom("spaces", "show", "lora", "--json").json


def test_doctor(rankloom: Rankloom, monkeypatch: pytest.MonkeyPatch) -> None:
    done = rankloom("doctor")
    assert done.code == 0 and "4-bit arithmetic" in done.out
    assert {finding["state"] for finding in rankloom("doctor", "--json").json} <= {"ok", "note"}
    monkeypatch.setattr("rankloom.doctor.PACKAGES", ("no-such-package",))
    done = rankloom("doctor", "--json")
    assert done.code == 1 and done.json[0]["fix"] == "pip install no-such-package"


def test_evaluate_says_what_is_a_difference(rankloom: Rankloom, world: Any) -> None:
    options = (
        "--base-too",
        "--metrics",
        "loss,rouge_l",
        "--limit",
        6,
        "--max-new-tokens",
        8,
        "--registry",
        world.registry,
    )
    found = rankloom("evaluate", *world.adapters, *options, "--json").json
    assert [subject["subject"] for subject in found["subjects"]] == ["base", *world.adapters]
    assert len(found["comparisons"]) == 6 and found["dataset"]["rows"] == 6
    shown = rankloom("evaluate", *world.adapters, *options)
    assert shown.code == 0 and "6 rows of held-out split of negation" in shown.out
    assert "better" in shown.out and "of 6 rows" in shown.out
    wrong = rankloom("evaluate", world.adapters[0], "--metrics", "bleu", "--registry", world.registry)
    assert wrong.code == 1 and "a metric is one of" in wrong.err


def test_an_evaluation_says_what_it_cut(rankloom: Rankloom, world: Any, tmp_path: Path) -> None:
    long = "the girl has loved flowers " * 40
    rows = [
        {"prompt": "a", "completion": long},
        {"prompt": "a", "completion": "b"},
        {"prompt": long, "completion": "b"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = rankloom("evaluate", world.adapters[0], "--dataset", tmp_path / "rows.jsonl", "--registry", world.registry)
    assert (shown.code, shown.err) == (0, "")
    assert "2 rows of" in shown.out and "1 cut to 48 tokens, 1 left out as too long" in " ".join(shown.out.split())


def test_evaluate_and_promote(rankloom: Rankloom, world: Any, tmp_path: Path) -> None:
    flags = ("--json", "--registry", world.registry)
    measured = rankloom("evaluate", world.adapters[0], "--base-too", *flags)
    assert measured.code == 0 and measured.json["gain_over_base"] > 0
    assert rankloom("evaluate", world.adapters[0], "--dataset", world.eval_rows, *flags).json["base_loss"] is None
    made = rankloom("promote", world.adapters[0], "--output", "merged", "--alias", "champion", *flags)
    assert made.code == 0 and made.json["output"] == str(tmp_path / "merged")
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert rankloom("adapters", "show", "negation@champion", *flags).json["promotions"][0]["status"] == "done"
    again = rankloom("promote", world.adapters[0], "--output", "merged", *flags)
    assert again.code == 1 and again.out == "" and "name another, or remove it first" in again.err
    done = rankloom("promote", world.adapters[0], "--output", "a", "--format", "adapter", "--registry", world.registry)
    assert done.code == 0 and (tmp_path / "a" / "adapter_config.json").is_file()
    assert "vllm" in done.out and "can serve it" in done.out
    assert rankloom("promote", world.adapters[0], "--output", "b", "--format", "zip", *flags).code == 2
    assert rankloom("promote", world.adapters[0], *flags).code == 2
    wrong = rankloom("promote", world.adapters[0], "--output", "b", "--format", "gguf", "--gguf-type", "q9", *flags)
    assert wrong.code == 1 and "q8_0" in wrong.err


def test_a_promotion_is_shown_and_undone(rankloom: Rankloom, world: Any, tmp_path: Path) -> None:
    good, slow = world.adapters
    flags = ("--registry", world.registry, "--no-compare", "--verify", "full", "--tolerance", "10", "--alias", "prod")
    first = rankloom("promote", good, "--output", "first", "--recipe", "as-trained", *flags)
    assert first.code == 0
    for text in (
        "merged as-trained",
        "adapter as trained",
        "base without the adapter",
        "95% interval",
        "held-out, 12 rows",
        "general",
    ):
        assert text in first.out
    assert rankloom("promote", slow, "--output", "second", *flags).code == 0
    undo = ("promote", slow, "--undo", "--reason", "worse", "--registry", world.registry)
    undone = rankloom(*undo, "--json")
    assert (undone.code, undone.json["alias"], undone.json["means_now"]) == (0, "negation@prod", good)
    assert (tmp_path / "second" / "model.safetensors").is_file()
    again = rankloom(*undo)
    assert again.code == 1 and "is left to undo" in again.err


def test_a_model_for_llama_cpp_comes_with_a_modelfile(rankloom: Rankloom, world: Any, tmp_path: Path) -> None:
    flags = ("--registry", world.registry, "--no-compare", "--tolerance", "10", "--json")
    made = rankloom("promote", world.adapters[0], "--output", "out", "--format", "gguf", "--gguf-type", "f16", *flags)
    assert made.code == 0 and made.json["checks"]["made"] == "gguf f16"
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert f"FROM ./{file.name}" in (tmp_path / "out" / "Modelfile").read_text()
    assert abs(made.json["checks"]["delta"]) < 0.1


def test_plan_trains_and_keeps_nothing(rankloom: Rankloom, tiny_model: Path, rows_file: Path, tmp_path: Path) -> None:
    (tmp_path / "search.yaml").write_text(
        f"model_name_or_path: {tiny_model}\ndataset: {rows_file}\nname: mine\ntraining: {{max_steps: 60}}\n"
    )
    found = rankloom("plan", "search.yaml", "--json")
    assert found.code == 0
    assert (found.json["name"], found.json["max_steps"], found.json["eval_steps"]) == ("mine", 60, 15)
    assert found.json["data"]["train_rows"] == 54
    dry = rankloom("search", "search.yaml", "--dry-run", "--json", "--num-samples", 5)
    assert dry.json["num_samples"] == 5 and dry.json["data"] == found.json["data"]
    assert rankloom("plan", "search.yaml").code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"search.yaml"}


def test_the_registry_comes_from_the_flag_then_the_environment_then_the_folder(
    rankloom: Rankloom, world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    missing = rankloom("adapters", "list")
    assert missing.code == 1 and str(tmp_path / "registry.duckdb") in missing.err and "--registry" in missing.err
    monkeypatch.setenv("RANKLOOM_REGISTRY", str(world.registry))
    assert rankloom("adapters", "list").code == 0
    missing = rankloom("adapters", "list", "--registry", "flag.duckdb")
    assert missing.code == 1 and str(tmp_path / "flag.duckdb") in missing.err
    monkeypatch.delenv("RANKLOOM_REGISTRY")
    monkeypatch.chdir(world.registry.parent)
    assert rankloom("adapters", "list").code == 0
    assert not (tmp_path / "registry.duckdb").exists()


WRONG_USAGE = {
    "no command": (),
    "unknown command": ("serach", "x.yaml"),
    "unknown option": ("adapters", "list", "--were", "r = 4"),
    "missing argument": ("adapters", "show"),
    "missing option": ("promote", "adapter"),
    "not a number": ("adapters", "list", "--limit", "many"),
    "a trial that cannot be": ("searches", "stop", "negation", "--trial", "-1"),
    "no trials at all": ("searches", "extend", "negation", "--by", "0"),
    "out of bounds": ("dashboard", "--port", "70000"),
}


@pytest.mark.parametrize("arguments", WRONG_USAGE.values(), ids=WRONG_USAGE)
def test_wrong_usage_is_2(rankloom: Rankloom, arguments: tuple[str, ...]) -> None:
    done = rankloom(*arguments)
    assert done.code == 2
    assert "Usage: rankloom" in done.out + done.err and "Traceback" not in done.err


FAILURES = {
    "no such adapter": (("adapters", "show", "no-such"), "no-such"),
    "no such search": (("searches", "show", "no-such"), "no-such"),
    "a search that has ended": (("searches", "stop", "negation"), "'negation' does not run now: it is completed"),
    "no such space": (("spaces", "show", "loora"), "lora"),
    "a filter that is none": (("adapters", "list", "--where", "r = 1; drop table adapters"), "filter"),
    "an ordering that is none": (("adapters", "list", "--order-by", "nothing"), "nothing"),
    "no such base": (("base", "fingerprint", "./none"), "./none"),
    "no such file": (("plan", "none.yaml"), "none.yaml"),
}


@pytest.mark.parametrize(("arguments", "fragment"), FAILURES.values(), ids=FAILURES)
def test_a_failure_is_1_with_one_message(
    rankloom: Rankloom, world: Any, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], fragment: str
) -> None:
    monkeypatch.setenv("RANKLOOM_REGISTRY", str(world.registry))
    done = rankloom(*arguments)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: ") and done.err.count("\n") == 1 and fragment in done.err
    debugged = rankloom(*arguments, "--debug")
    assert debugged.code == 1 and debugged.err.startswith("Traceback")


def test_markup_in_a_value_is_text(rankloom: Rankloom) -> None:
    assert "'[red]none[/red].yaml'" in rankloom("plan", "[red]none[/red].yaml").err


def test_an_unexpected_error_is_one_message_too(rankloom: Rankloom, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("division\nby zero")

    monkeypatch.setattr("rankloom.doctor.diagnose", fail)
    done = rankloom("doctor")
    assert done.code == 1
    assert done.err == "error: ZeroDivisionError: division by zero (run it again with --debug for the stack trace)\n"


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a command line in a process of its own."""

    def start(*arguments: str) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [sys.executable, "-c", "from rankloom.cli import main; main()", *arguments],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def test_an_interrupt_is_130(tmp_path: Path, started: Callable[..., subprocess.Popen[str]]) -> None:
    os.mkfifo(tmp_path / "search.yaml")
    process = started("plan", "search.yaml")
    # Opening waits for the reader: from here on, the command is inside its read.
    with (tmp_path / "search.yaml").open("w"):
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (130, "", "interrupted\n")


def test_a_reader_that_goes_away_is_no_stack_trace(started: Callable[..., subprocess.Popen[str]]) -> None:
    process = started("spaces", "show", "lora")
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 1 and err == ""
    process.stderr.close()


def test_json_of_a_value_that_is_no_number(rankloom: Rankloom, world: Any) -> None:
    from rankloom_registry import AdapterAdded

    registry = Registry.open(world.registry)
    adapter = registry.adapter(world.adapters[0])
    registry.record(
        AdapterAdded(
            adapter_id="diverged",
            name="diverged",
            base_content_root=adapter.base_content_root,
            params=adapter.params,
            metrics={"eval_loss": float("nan")},
            artifact_sha256=adapter.artifact_sha256,
        )
    )
    done = rankloom("adapters", "show", "diverged", "--json", "--registry", world.registry)
    assert done.code == 0, done.err

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert json.loads(done.out, parse_constant=refuse)["adapter"]["eval_loss"] is None


@pytest.mark.parametrize("as_json", [False, True], ids=["table", "json"])
def test_a_search_without_an_adapter_has_failed(
    rankloom: Rankloom, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, as_json: bool
) -> None:
    """What a search of failing trials returns, without the Ray that it takes to run one."""
    from rankloom.result import METRICS, SearchResult, Trial
    from rankloom.search import Search

    params = {"r": 4, "lora_alpha": 8, "learning_rate": 1.0, "target_modules": "mlp"}
    trial = Trial(
        trial_id="t",
        number=0,
        status="failed",
        adapter_id=None,
        params=params,
        metrics=dict.fromkeys(METRICS),
        message="train_loss is nan at step 2",
    )
    result = SearchResult(
        search_id="s",
        name="mine",
        status="completed",
        registry=tmp_path / "registry.duckdb",
        run_folder=tmp_path,
        trials=(trial,),
    )
    monkeypatch.setattr(Search, "run", lambda self, watch, verbose: result)
    (tmp_path / "search.yaml").write_text("model_name_or_path: base\ndataset: rows.jsonl\n")
    done = rankloom("search", "search.yaml", *(["--json"] if as_json else []))
    assert done.code == 1
    message = "error: no trial of 'mine' made an adapter; trial 0: train_loss is nan at step 2"
    assert done.err.splitlines()[-1] == message
    if as_json:
        assert done.json["best"] is None and done.json["trials"][0]["status"] == "failed"
    else:
        assert "leaderboard of mine" in done.out
