from __future__ import annotations

import json
import math
import pickle
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest

from rankloom_registry import (
    AdapterAdded,
    AdapterAnnotated,
    AdapterDiscarded,
    AliasMoved,
    BaseFingerprint,
    BaseSeen,
    Evaluated,
    Event,
    EventError,
    InvalidNameError,
    Promoted,
    PromotionUndone,
    SearchEnded,
    SearchExtended,
    SearchResumed,
    SearchStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
    validate_name,
)
from rankloom_registry.events.event import EVENTS


def started(**changes: object) -> SearchStarted:
    fields = {
        "search_id": "s1",
        "name": "first",
        "base_content_root": "c" * 64,
        "dataset": {},
        "config": {},
        "metric": "eval_loss",
        "mode": "min",
        "num_samples": 2,
        "seed": 0,
    }
    return SearchStarted(**fields | changes)  # type: ignore[arg-type]


def added(**changes: object) -> AdapterAdded:
    fields = {
        "adapter_id": "a1",
        "name": "first",
        "base_content_root": "c" * 64,
        "params": {"target_modules": ["q", "v"]},
        "metrics": {},
        "artifact_sha256": "a" * 64,
    }
    return AdapterAdded(**fields | changes)  # type: ignore[arg-type]


@pytest.fixture
def one_of_each(base: BaseFingerprint) -> list[Event]:
    return [
        BaseSeen(base=base, leaves={"w": "1" * 64}, why="a closer look"),
        started(),
        SearchResumed(search_id="s1"),
        SearchExtended(search_id="s1", num_samples=9),
        SearchEnded(search_id="s1", status="failed", message="«ß»\n"),
        TrialStarted(trial_id="t1", search_id="s1", number=0, params={"r": 8, "deep": {"a": [1, None, True]}}),
        TrialReported(trial_id="t1", step=5, metrics={"eval_loss": 1.5}),
        TrialEnded(trial_id="t1", status="stopped", metrics={"steps": 5}),
        added(),
        AdapterAnnotated(adapter_id="a1", note="«ß»", tags_added=("b", "a"), tags_removed=("c",), why="after review"),
        AdapterDiscarded(adapter_id="a1", reason="not among the best"),
        Evaluated(evaluation_id="e1", adapter_id=None, base_content_root="c" * 64, dataset={}, metrics={}),
        Promoted(
            promotion_id="p1",
            adapter_id="a1",
            status="refused",
            recipe="as-trained",
            format="gguf",
            output_path="",
            output_sha256="",
            checks={"finite": False},
        ),
        PromotionUndone(promotion_id="p1", adapter_id="a1", why="a worse model than it looked"),
        AliasMoved(name="first", alias="best", adapter_id="a1"),
    ]


def test_every_kind_goes_through_one_line_of_json_and_back(one_of_each: list[Event]) -> None:
    assert {type(event) for event in one_of_each} == set(EVENTS.values())
    for event in one_of_each:
        line = event.to_json()
        assert "\n" not in line
        assert Event.from_json(line) == event
        assert pickle.loads(pickle.dumps(event)) == event


def test_ids_follow_from_what_happened(base: BaseFingerprint) -> None:
    assert BaseSeen(base=base).event_id == f"base_seen:{'c' * 64}:org/tiny@0123"
    assert BaseSeen(base=base, leaves={"w": "1"}).event_id == f"base_seen:{'c' * 64}:org/tiny@0123:leaves"
    assert started().event_id == started(num_samples=9).event_id == "search_started:s1"
    assert TrialStarted(trial_id="t1", search_id="s1", number=0, params={}, attempt=2).event_id == "trial_started:t1:2"
    assert TrialReported(trial_id="t1", step=5, metrics={}).event_id == "trial_reported:t1:5"
    assert added(event_id="mine").event_id == "mine"
    for make in (lambda: SearchResumed(search_id="s1"), lambda: AliasMoved(name="n", alias="a", adapter_id=None)):
        assert make().event_id != make().event_id


def test_a_loss_may_be_no_number_and_json_stays_strict() -> None:
    event = TrialReported(trial_id="t1", step=1, metrics={"a": math.nan, "b": -math.inf, "c": np.float32(0.5)})
    line = event.to_json()
    json.loads(line, parse_constant=lambda text: pytest.fail(f"{text} is not JSON"))
    back = Event.from_json(line)
    assert isinstance(back, TrialReported)
    assert math.isnan(back.metrics["a"] or 0) and back.metrics["b"] == -math.inf and back.metrics["c"] == 0.5


def test_plain_values_of_other_types_become_json() -> None:
    event = TrialStarted(
        trial_id="t1",
        search_id="s1",
        number=0,
        params={"path": Path("a/b"), "n": np.int64(3), "t": (1, 2), "s": {"b", "a"}},
    )
    assert json.loads(event.to_json())["params"] == {"path": "a/b", "n": 3, "t": [1, 2], "s": ["a", "b"]}
    with pytest.raises(EventError, match="object"):
        TrialStarted(trial_id="t1", search_id="s1", number=0, params={"x": object()}).to_json()


def test_why_is_what_was_said_or_the_reason() -> None:
    assert started().reasoning == ""
    assert started(why="a new dataset").reasoning == "a new dataset"
    assert AdapterDiscarded(adapter_id="a1", reason="space").reasoning == "space"
    assert AdapterDiscarded(adapter_id="a1", reason="space", why="asked for").reasoning == "asked for"
    assert "why" not in started(why="x").payload


def test_lines_of_the_first_version_are_still_read() -> None:
    head = '"at":"2026-01-02T03:04:05+00:00","who":"ann"'
    base = (
        '{"identity":"org/tiny@0123","structure":"5","content_root":"c","tensors":2,"parameters":10,"bytes":20,'
        '"dtype":"bfloat16","tokenizer_sha256":null,"chat_template_sha256":null,"config":{}}'
    )
    seen = Event.from_json(f'{{"kind":"base_seen","event_id":"base_seen:c:org/tiny@0123",{head},"base":{base}}}')
    assert isinstance(seen, BaseSeen)
    assert (seen.leaves, seen.why, seen.base.sampled, seen.base.quantization_sha256) == ({}, "", None, None)
    assert seen.event_id == BaseSeen(base=seen.base).event_id
    moved = Event.from_json(
        f'{{"kind":"alias_moved","event_id":"alias_moved:1",{head},"name":"first","alias":"best","adapter_id":null}}'
    )
    assert moved == AliasMoved(
        event_id="alias_moved:1", at=seen.at, who="ann", name="first", alias="best", adapter_id=None
    )
    trial = '"trial_id":"t1","search_id":"s1","number":0,"params":{},"lane":"lane-0","attempt":1'
    begun = Event.from_json(f'{{"kind":"trial_started","event_id":"trial_started:t1:1",{head},{trial}}}')
    assert isinstance(begun, TrialStarted) and begun.slot is None


def test_times_are_aware() -> None:
    assert abs(started().at - datetime.now(UTC)) < timedelta(minutes=1)
    local = started(at=datetime(2030, 1, 1, tzinfo=timezone(timedelta(hours=2))))
    assert Event.from_json(local.to_json()).at == local.at
    with pytest.raises(EventError, match="time zone"):
        started(at=datetime(2030, 1, 1))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"kind": "unknown"}', '{"kind": "search_resumed"}', "null"])
def test_what_is_no_event_is_refused(text: str) -> None:
    with pytest.raises(EventError):
        Event.from_json(text)
    with pytest.raises(EventError):
        Event.from_json(started().to_json()[:-5])


def test_fields_are_checked() -> None:
    for wrong in (
        lambda: started(mode="best"),
        lambda: SearchEnded(search_id="s1", status="running"),
        lambda: TrialEnded(trial_id="t1", status="done"),
        lambda: added(status="lost"),
        lambda: added(artifact_sha256=""),
        lambda: added(artifact_sha256="../x", status="discarded"),
        lambda: AdapterAnnotated(adapter_id="a1", tags_added=("a",), tags_removed=("a",)),
    ):
        with pytest.raises(EventError):
            wrong()
    for name in ("", "a/b", "..", "a..b", "a b", "a@b", "<script>", "x" * 129, "a\n", "é"):
        for wrong in (
            lambda name=name: started(name=name),
            lambda name=name: added(name=name),
            lambda name=name: AliasMoved(name="n", alias=name, adapter_id=None),
            lambda name=name: AdapterAnnotated(adapter_id="a1", name=name),
            lambda name=name: AdapterAnnotated(adapter_id="a1", tags_added=[name]),
            lambda name=name: validate_name(name),
        ):
            with pytest.raises(InvalidNameError):
                wrong()
    assert validate_name("SmolLM2-135M_v1.0") == "SmolLM2-135M_v1.0"
