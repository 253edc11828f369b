"""From events to the registry: every trial is recorded, and the best adapters keep their files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from rankloom.recorder import Recorder, adapter_id
from rankloom_registry import (
    AliasMoved,
    BaseFingerprint,
    BaseSeen,
    Event,
    Registry,
    SearchStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
)


@pytest.fixture
def registry(tmp_path: Path, fingerprint: BaseFingerprint) -> Registry:
    registry = Registry.open(tmp_path / "registry.duckdb", create=True)
    registry.record(
        BaseSeen(base=fingerprint),
        SearchStarted(
            search_id="s",
            name="tiny",
            base_content_root=fingerprint.content_root,
            dataset={},
            config={},
            metric="eval_loss",
            mode="min",
            num_samples=9,
            seed=0,
        ),
    )
    return registry


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "adapters"


@pytest.fixture
def make(registry: Registry, fingerprint: BaseFingerprint, folder: Path) -> Callable[..., Recorder]:
    def make(keep_top: int = 2) -> Recorder:
        return Recorder(
            registry,
            search_id="s",
            name="tiny",
            base_content_root=fingerprint.content_root,
            adapters=folder,
            keep_top=keep_top,
        )

    return make


def leave_adapter(folder: Path, trial: str, weight: float) -> None:
    """Write what a lane leaves behind; the same weight is the same content."""
    path = folder / trial
    path.mkdir(parents=True)
    array = np.full((2, 4), weight, np.float32)
    save_file(
        {"q_proj.lora_A.weight": array, "q_proj.lora_B.weight": array.T.copy()}, path / "adapter_model.safetensors"
    )
    (path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))


def ended(number: int, loss: float | None, status: str = "completed") -> list[Event]:
    trial = f"s-{number}"
    metrics = {} if loss is None else {"eval_loss": loss, "steps": 9}
    return [
        TrialStarted(trial_id=trial, search_id="s", number=number, params={"r": 2, "lora_alpha": 4}),
        TrialEnded(trial_id=trial, status=status, metrics=metrics),
    ]


def available(registry: Registry) -> list[tuple[int | None, float | None]]:
    return [(a.trial_number, a.eval_loss) for a in registry.adapters("status = 'available'", "eval_loss")]


def kept_files(registry: Registry) -> set[str]:
    return {path.name for path in registry.artifacts.root.glob("sha256/*/*")}


def test_the_best_keep_their_files_and_the_rest_only_their_record(
    registry: Registry, folder: Path, make: Callable[..., Recorder]
) -> None:
    recorder = make(keep_top=2)
    for number, loss in enumerate([3.0, 2.0, 4.0, 1.0]):
        leave_adapter(folder, f"s-{number}", loss)
        recorder.record(ended(number, loss))
    assert available(registry) == [(3, 1.0), (1, 2.0)]
    every = {a.trial_number: (a.status, a.artifact_path is not None) for a in registry.adapters()}
    assert every == {
        0: ("discarded", False),
        1: ("available", True),
        2: ("discarded", False),
        3: ("available", True),
    }
    assert kept_files(registry) == {a.artifact_sha256 for a in registry.adapters("status = 'available'")}
    for adapter in registry.adapters("status = 'available'"):
        registry.verify(adapter)
    (why,) = [e for e in registry.events(adapter_id("s-0")) if e.kind == "adapter_discarded"]
    assert why.payload["reason"] == "not among the best 2"
    assert list(folder.iterdir()) == []


def test_one_batch_records_what_many_do(registry: Registry, folder: Path, make: Callable[..., Recorder]) -> None:
    losses = [3.0, 2.0, 4.0, 1.0]
    for number, loss in enumerate(losses):
        leave_adapter(folder, f"s-{number}", loss)
    make(keep_top=2).record([event for number, loss in enumerate(losses) for event in ended(number, loss)])
    assert available(registry) == [(3, 1.0), (1, 2.0)]
    assert kept_files(registry) == {a.artifact_sha256 for a in registry.adapters("status = 'available'")}


def test_files_that_another_adapter_shares_stay(
    registry: Registry, folder: Path, make: Callable[..., Recorder]
) -> None:
    recorder = make(keep_top=2)
    for number, (loss, weight) in enumerate([(3.0, 7.0), (2.0, 7.0), (1.0, 8.0)]):
        leave_adapter(folder, f"s-{number}", weight)
        recorder.record(ended(number, loss))
    assert available(registry) == [(2, 1.0), (1, 2.0)]
    for adapter in registry.adapters("status = 'available'"):
        registry.verify(adapter)


def test_events_that_come_again_change_nothing(registry: Registry, folder: Path, make: Callable[..., Recorder]) -> None:
    story: list[Event] = []
    for number, loss in enumerate([3.0, 2.0, 1.0]):
        leave_adapter(folder, f"s-{number}", loss)
        report = TrialReported(trial_id=f"s-{number}", step=3, metrics={"eval_loss": loss, "steps": 3})
        story += [ended(number, loss)[0], report, ended(number, loss)[1]]
    make(keep_top=2).record(story)
    before = (registry.trials("s"), registry.adapters(), kept_files(registry))
    for number, loss in enumerate([3.0, 2.0, 1.0]):  # a crash came before the lanes' folders were removed
        leave_adapter(folder, f"s-{number}", loss)
    make(keep_top=2).record(story)
    make(keep_top=2).record([])
    assert (registry.trials("s"), registry.adapters(), kept_files(registry)) == before
    assert list(folder.iterdir()) == []


def test_a_recorder_goes_on_from_what_the_registry_knows(
    registry: Registry, folder: Path, make: Callable[..., Recorder]
) -> None:
    leave_adapter(folder, "s-0", 2.0)
    make(keep_top=1).record(ended(0, 2.0))
    started, end = ended(1, 1.0)
    make(keep_top=1).record([started])
    leave_adapter(folder, "s-1", 1.0)
    make(keep_top=1).record([end])
    assert available(registry) == [(1, 1.0)]
    assert registry.adapters("status = 'available'")[0].params == {"r": 2, "lora_alpha": 4}
    assert len(kept_files(registry)) == 1


def test_a_trial_without_an_adapter_is_recorded_without_one(
    registry: Registry, folder: Path, make: Callable[..., Recorder]
) -> None:
    recorder = make()
    recorder.record(ended(0, None, "failed"))
    recorder.record(ended(1, 2.0))  # its lane died while it wrote
    leave_adapter(folder, "s-2", 1.0)
    (folder / "s-2" / "adapter_config.json").unlink()
    recorder.record(ended(2, 1.0))
    leave_adapter(folder, "s-3", 1.0)
    recorder.record(ended(3, float("nan"), "stopped"))
    assert [(trial.status, trial.adapter_id) for trial in registry.trials("s")] == [
        ("failed", None),
        ("completed", None),
        ("completed", None),
        ("stopped", None),
    ]
    assert registry.adapters() == []
    assert not folder.exists() or list(folder.iterdir()) == []


def test_the_same_trial_always_makes_the_same_adapter_id() -> None:
    assert adapter_id("s-1") == adapter_id("s-1") != adapter_id("s-2")
    assert len(adapter_id("s-1")) == 12


def test_an_adapter_with_an_alias_keeps_its_files(
    registry: Registry, folder: Path, make: Callable[..., Recorder]
) -> None:
    recorder = make(keep_top=1)
    leave_adapter(folder, "s-0", 3.0)
    recorder.record(ended(0, 3.0))
    registry.record(AliasMoved(name="tiny", alias="prod", adapter_id=adapter_id("s-0")))
    leave_adapter(folder, "s-1", 2.0)
    recorder.record(ended(1, 2.0))
    assert available(registry) == [(1, 2.0), (0, 3.0)]
    registry.verify(registry.adapter("tiny@prod"))


def test_an_adapter_that_the_store_refuses_ends_nothing(
    registry: Registry, folder: Path, make: Callable[..., Recorder]
) -> None:
    recorder = make(keep_top=2)
    leave_adapter(folder, "s-0", float("nan"))
    recorder.record(ended(0, 1.0))
    leave_adapter(folder, "s-1", 2.0)
    recorder.record(ended(1, 2.0))
    assert available(registry) == [(1, 2.0)]
    (why,) = [e for e in registry.events(adapter_id("s-0")) if e.kind == "adapter_discarded"]
    assert "NaN" in why.payload["reason"]
