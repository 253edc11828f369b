from __future__ import annotations

import json
import math
import shutil
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from rankloom.errors import ConfigError, DataError, ModelError, PromotionError
from rankloom.evaluation.base import BASE, base_of
from rankloom.evaluation.evaluate import evaluate
from rankloom.evaluation.report import load_report, report_file
from rankloom.evaluation.rows import held_out_rows
from rankloom.evaluation.scores import exact_match, rouge_l
from rankloom_registry import (
    AdapterAdded,
    AdapterAnnotated,
    AdapterNotFoundError,
    ArtifactError,
    BaseFingerprint,
    BaseSeen,
    Registry,
    RegistryWriteError,
)


@pytest.fixture
def registry(world: Any) -> Registry:
    return Registry.open(world.registry)


def test_an_adapter_is_measured_as_its_search_measured_it(world: Any, registry: Registry) -> None:
    seen: list[tuple[str, int, int]] = []
    adapter_id = world.adapters[0]
    report = evaluate(registry, [adapter_id], samples=2, on_batch=lambda *done: seen.append(done))
    adapter = registry.adapter(adapter_id)
    mine, base = report.metrics(adapter_id), report.metrics(BASE)
    assert mine["eval_loss"] == adapter.eval_loss
    assert base["eval_loss"] > mine["eval_loss"] + 0.3
    assert mine["perplexity"] == pytest.approx(math.exp(mine["eval_loss"]))
    assert mine["eval_loss_low"] < mine["eval_loss"] < mine["eval_loss_high"]
    assert report.dataset["rows"] == 12 and report.dataset["source"] == "held-out split of negation"
    assert {what for what, _, _ in seen} == {
        "base: loss",
        "base: text",
        "negation: loss",
        "negation: text",
        "compare",
    }
    assert ("negation: loss", 12, 12) in seen
    (gain,) = report.comparisons
    assert (gain.metric, gain.before, gain.after, gain.rows) == ("loss", BASE, adapter_id, 12)
    assert gain.difference == pytest.approx(mine["eval_loss"] - base["eval_loss"])
    assert gain.verdict == "better" and gain.p < 0.01 and gain.wins == 12 and gain.regressions == ()
    written = [row for row in report.rows if row.results[adapter_id].text is not None]
    assert len(written) == 2 and written[0].results[adapter_id].text != written[0].results[BASE].text
    assert all(row.results[BASE].exact_match is None for row in report.rows)

    (recorded,) = registry.evaluations(adapter_id)
    assert recorded.evaluation_id == f"{report.run}-0" and recorded.dataset == report.dataset
    assert recorded.metrics == {
        **mine,
        "base_loss": base["eval_loss"],
        "base_loss_low": base["eval_loss_low"],
        "base_loss_high": base["eval_loss_high"],
        "base_perplexity": base["perplexity"],
    }


def test_the_same_rows_from_a_file_give_the_same_loss(world: Any, registry: Registry) -> None:
    adapter_id = world.adapters[0]
    split = evaluate(registry, [adapter_id], base_too=False)
    file = evaluate(registry, [adapter_id], dataset=str(world.eval_rows), base_too=False)
    assert file.subjects == split.subjects and file.comparisons == () == split.comparisons
    assert file.dataset == {**split.dataset, "source": str(world.eval_rows)}
    assert len(registry.evaluations(adapter_id)) == 2


def test_two_adapters_and_their_base_on_one_resident_base(world: Any, registry: Registry) -> None:
    """Each gives what it gives alone, whoever was active before."""
    good, slow = world.adapters
    metrics = ("loss", "exact_match", "rouge_l")
    report = evaluate(registry, [slow, good, slow], metrics=metrics, max_new_tokens=12)
    assert [subject.subject for subject in report.subjects] == [BASE, slow, good]
    for adapter_id in (good, slow):
        alone = evaluate(registry, [adapter_id], metrics=metrics, max_new_tokens=12)
        assert alone.metrics(adapter_id) == report.metrics(adapter_id)
        assert alone.metrics(BASE) == report.metrics(BASE)
        assert [row.results[adapter_id] for row in alone.rows] == [row.results[adapter_id] for row in report.rows]
    assert [(one.before, one.after) for one in report.comparisons if one.metric == "loss"] == [
        (BASE, slow),
        (BASE, good),
        (slow, good),
    ]
    for row in report.rows:
        mine = row.results[good]
        assert mine.exact_match == exact_match(mine.text, row.expected)
        assert mine.rouge_l == rouge_l(mine.text, row.expected)
    mean = sum(row.results[good].rouge_l for row in report.rows) / len(report.rows)
    assert report.metrics(good)["rouge_l"] == pytest.approx(mean)
    assert report.metrics(good)["rouge_l"] > report.metrics(BASE)["rouge_l"]
    recorded = [registry.evaluations(adapter_id)[-1].evaluation_id for adapter_id in (slow, good)]
    assert recorded == [f"{report.run}-0", f"{report.run}-1"]


def test_a_report_is_read_again_as_it_was(world: Any, registry: Registry, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    odd = "\x85 \u2028 <b>" + "x" * 30_000  # characters that some take for the end of a line
    rows.write_text(
        json.dumps({"prompt": odd, "completion": "boy"}) + "\n" + json.dumps({"prompt": "a", "completion": odd})
    )
    report = evaluate(registry, world.adapters[:1], dataset=str(world.eval_rows), metrics=("loss", "rouge_l"))
    assert load_report(report_file(registry.path, registry.evaluations(world.adapters[0])[0].evaluation_id)) == report
    long = evaluate(registry, world.adapters[:1], dataset=str(rows), max_new_tokens=1, metrics=("loss",))
    (kept,) = load_report(report_file(registry.path, long.run)).rows  # max_length leaves the first no loss
    assert kept.prompt == "a" and kept.expected == odd[:20_000]
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_a_report_that_is_gone_or_broken(world: Any, registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="evaluate again to see them"):
        load_report(report_file(registry.path, "0123abcd-0"))
    for content in ("", "[]", "{}", '{"format": 2}', "\xff"):
        (tmp_path / "r.jsonl").write_text(content, encoding="latin-1")
        with pytest.raises(DataError, match="is no report of an evaluation"):
            load_report(tmp_path / "r.jsonl")
    path = report_file(registry.path, evaluate(registry, world.adapters[:1]).run)
    lines = path.read_text().splitlines(keepends=True)
    hostile = lines[0].replace('"max_new_tokens": ', '"max_new_tokens": "![x](http://evil.example)", "old": ')
    assert hostile != lines[0]
    shortened = [lines[:1], lines[:-1], [*lines[:-1], lines[-1][:20]]]
    for broken in (*shortened, [*lines, lines[-1]], [hostile, *lines[1:]]):
        path.write_text("".join(broken))
        with pytest.raises(DataError, match="is no report of an evaluation"):
            load_report(path)
    for name in ("../../etc/passwd", "", "."):
        with pytest.raises(DataError, match="letters and digits"):
            report_file(registry.path, name)


def test_what_is_not_recorded_leaves_no_file(world: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Registry, *events: object) -> int:
        raise RegistryWriteError("the disk is full")

    monkeypatch.setattr(Registry, "record", refuse)
    with pytest.raises(RegistryWriteError):
        evaluate(registry, world.adapters[:1])
    assert list(registry.path.with_suffix(".evaluations").iterdir()) == []


def test_only_the_first_rows(world: Any, registry: Registry) -> None:
    every = evaluate(registry, world.adapters[:1])
    few = evaluate(registry, world.adapters[:1], limit=5)
    assert few.dataset == {**every.dataset, "rows": 5, "limit": 5}
    assert [row.prompt for row in few.rows] == [row.prompt for row in every.rows[:5]]
    losses = [row.results[BASE].loss for row in few.rows]
    assert losses == pytest.approx([row.results[BASE].loss for row in every.rows[:5]], rel=1e-3)


def test_messages_end_with_the_answer(world: Any, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "chat.jsonl").write_text(
        json.dumps({"messages": [{"role": "user", "content": "the girl"}, {"role": "assistant", "content": "farm"}]})
        + "\n"
        + json.dumps({"messages": [{"role": "assistant", "content": "farm"}, {"role": "user", "content": "the girl"}]})
    )
    report = evaluate(
        registry, world.adapters[:1], dataset=str(tmp_path / "chat.jsonl"), metrics=("exact_match",), max_new_tokens=3
    )
    asked, silent = report.rows
    assert (asked.prompt, asked.expected) == ("user: the girl", "farm")
    assert asked.results[BASE].text is not None and silent.results[BASE].text is None
    assert report.comparisons[0].rows == 1 and "eval_loss" not in report.metrics(BASE)


def test_what_is_asked_for_twice_is_measured_once(world: Any, registry: Registry) -> None:
    report = evaluate(registry, world.adapters[:1], metrics=["loss", "loss"], limit=2)
    assert [one.metric for one in report.comparisons] == ["loss"]


def test_what_its_tokens_were_is_recorded(world: Any, registry: Registry, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "boy " * 100}, {"prompt": "girl " * 50, "completion": "b"}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = evaluate(registry, world.adapters[:1], dataset=str(tmp_path / "rows.jsonl")).dataset
    assert {name: dataset[name] for name in ("rows", "max_length", "cut_rows", "dropped_rows")} == {
        "rows": 1,
        "max_length": 48,
        "cut_rows": 1,
        "dropped_rows": 1,
    }


def test_wishes_that_make_no_sense(world: Any, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "the girl has loved the farm"}) + "\n")
    for message, wishes in {
        "a metric is one of loss, exact_match, rouge_l, got 'bleu'": {"metrics": ["bleu"]},
        "needs a metric or a task": {"metrics": ()},
        "limit must be at least 1, got 0": {"limit": 0},
        "max_new_tokens must be at least 1": {"max_new_tokens": 0},
        "samples must be at least 0, got -1": {"samples": -1},
    }.items():
        with pytest.raises(ConfigError, match=message):
            evaluate(registry, world.adapters[:1], **wishes)
    with pytest.raises(ConfigError, match="name one or more"):
        evaluate(registry, [])
    with pytest.raises(DataError, match=r"rouge_l need rows with an answer .* measure the loss alone"):
        evaluate(registry, world.adapters[:1], dataset=str(tmp_path / "text.jsonl"), metrics=("loss", "rouge_l"))
    assert registry.evaluations(world.adapters[0]) == []


def test_adapters_that_share_no_base_or_no_rows(world: Any, registry: Registry) -> None:
    adapter = registry.adapter(world.adapters[0])
    other = replace(registry.base(adapter.base_content_root), content_root="ab" * 32)
    known = {field.name for field in fields(BaseFingerprint)}
    add = partial(
        AdapterAdded, name="elsewhere", params=adapter.params, metrics={}, artifact_sha256=adapter.artifact_sha256
    )
    registry.record(
        BaseSeen(base=BaseFingerprint(**{name: getattr(other, name) for name in known})),
        add(adapter_id="imported", base_content_root=adapter.base_content_root),
        add(adapter_id="stranger", base_content_root=other.content_root),
    )
    with pytest.raises(ModelError, match="belong to different bases"):
        evaluate(registry, [adapter.adapter_id, "stranger"])
    with pytest.raises(DataError, match=r"come from different searches.*give --dataset FILE"):
        evaluate(registry, [adapter.adapter_id, "imported"])
    report = evaluate(registry, [adapter.adapter_id, "imported"], dataset=str(world.eval_rows))
    assert report.metrics("imported") == report.metrics(adapter.adapter_id)  # the same files
    assert report.comparisons[-1].p == 1 and report.comparisons[-1].verdict == "undecided"


def test_rows_without_loss_do_not_shift_the_others(world: Any, registry: Registry) -> None:
    """A search leaves them out of its tokens and not out of its text."""
    adapter = registry.adapter(world.adapters[0])
    lines = world.eval_rows.read_text().splitlines(keepends=True)
    world.eval_rows.write_text(json.dumps({"prompt": "the girl " * 50, "completion": "boy"}) + "\n" + "".join(lines))
    held_out = held_out_rows(registry, adapter, None, base_of(registry, adapter))
    assert held_out.rows == [json.loads(line) for line in lines]
    assert len(held_out.tokens) == len(held_out.rows) == 12


def test_the_split_is_found_beside_the_registry(
    world: Any, registry: Registry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The search recorded a relative path, the folder has moved since, and the adapter has another name."""
    monkeypatch.chdir(tmp_path)
    registry.record(AdapterAnnotated(adapter_id=world.adapters[0], name="renamed"))
    adapter = registry.adapter(world.adapters[0])
    base = base_of(registry, adapter)
    assert len(held_out_rows(registry, adapter, None, base).tokens) == 12
    shutil.rmtree(world.registry.with_suffix(".runs"))
    with pytest.raises(DataError, match=r"held-out split of 'negation' is not in .*give --dataset FILE"):
        held_out_rows(registry, adapter, None, base)


def test_an_imported_adapter_needs_a_dataset(world: Any, registry: Registry) -> None:
    adapter = registry.adapter(world.adapters[0])
    registry.record(
        AdapterAdded(
            adapter_id="imported",
            name="elsewhere",
            base_content_root=adapter.base_content_root,
            params=adapter.params,
            metrics={},
            artifact_sha256=adapter.artifact_sha256,
        )
    )
    with pytest.raises(DataError, match="give --dataset FILE"):
        evaluate(registry, ["imported"])
    measured = evaluate(registry, ["imported"], dataset=str(world.eval_rows)).metrics("imported")
    assert measured["eval_loss"] == pytest.approx(adapter.eval_loss, rel=1e-3)


def test_rows_that_cannot_be_used(world: Any, registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "wrong.jsonl").write_text(json.dumps({"question": "a"}) + "\n")
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "the girl " * 50, "completion": "boy"}) + "\n")
    for name, message in {"wrong.jsonl": "found: question", "long.jsonl": "no row of .* has loss"}.items():
        with pytest.raises(DataError, match=message):
            evaluate(registry, [world.adapters[0]], dataset=str(tmp_path / name))
    assert registry.evaluations(world.adapters[0]) == []


def test_another_base_is_refused(world: Any, registry: Registry, tmp_path: Path) -> None:
    moved = shutil.copytree(world.base, tmp_path / "moved")
    adapter = registry.adapter(world.adapters[0])
    assert base_of(registry, adapter, str(moved)).path == moved
    weights = load_file(moved / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PromotionError, match="give the folder of the right base with --base") as caught:
        evaluate(registry, [world.adapters[0]], base=str(moved))
    assert adapter.base_content_root[:16] in str(caught.value) and str(moved) in str(caught.value)
    assert registry.evaluations(world.adapters[0]) == []


def test_an_adapter_that_is_not_there_or_has_changed(world: Any, registry: Registry) -> None:
    with pytest.raises(AdapterNotFoundError):
        evaluate(registry, ["no-such-adapter"])
    path = registry.adapter(world.adapters[0]).artifact_path
    assert path is not None
    weights = path / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(ArtifactError):
        evaluate(registry, [world.adapters[0]])
    assert registry.evaluations(world.adapters[0]) == []
