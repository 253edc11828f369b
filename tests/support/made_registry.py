"""A registry of one finished search, made of events, which the tests of the dashboard look at."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rankloom_registry import (
    AdapterAdded,
    AdapterDiscarded,
    AliasMoved,
    BaseFingerprint,
    BaseSeen,
    Evaluated,
    Event,
    Promoted,
    Registry,
    SearchEnded,
    SearchStarted,
    TrialEnded,
    TrialReported,
    TrialStarted,
)

START = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
# number: (status, steps, where the curve levels off, r, alpha, learning rate, target modules, dropout)
TRIALS: dict[int, tuple[str, int, float, int, int, float, str, float]] = {
    0: ("completed", 60, 2.21, 16, 32, 2.0e-4, "all-linear", 0.05),
    1: ("stopped", 15, 2.46, 8, 16, 3.4e-5, "attention-qv", 0.0),
    2: ("completed", 60, 2.13, 32, 32, 4.1e-4, "all-linear", 0.0),
    3: ("stopped", 30, 2.31, 8, 32, 6.2e-5, "attention", 0.05),
    4: ("completed", 60, 2.18, 64, 16, 1.6e-4, "mlp", 0.0),
    5: ("completed", 60, 2.04, 32, 32, 7.8e-4, "all-linear", 0.05),
    6: ("failed", 0, math.nan, 64, 32, 9.9e-4, "all-linear", 0.0),
    7: ("stopped", 15, 2.52, 16, 16, 4.4e-5, "attention-qv", 0.05),
}
KEPT = (0, 2, 5)


@dataclass(frozen=True)
class Made:
    """A registry on disk and what the tests ask of it by name."""

    path: Path
    search_id: str
    best: str
    second: str
    prior: str
    discarded: str


def base(root: str = "c0") -> BaseFingerprint:
    return BaseFingerprint(
        identity="tiny/llama@5f3a",
        structure="ab" * 32,
        content_root=root * 32,
        tensors=272,
        parameters=134_515_008,
        bytes=269_030_016,
        dtype="bfloat16",
        tokenizer_sha256="12" * 32,
        chat_template_sha256=None,
        config={"model_type": "llama"},
    )


def params(number: int) -> dict[str, Any]:
    _, _, _, r, alpha, rate, modules, dropout = TRIALS[number]
    return {
        "r": r,
        "lora_alpha": float(alpha),
        "use_rslora": False,
        "lora_dropout": dropout,
        "learning_rate": rate,
        "target_modules": modules,
        "seed": 100 + number,
        "lr_scheduler_type": "cosine" if number % 2 else "linear",
    }


def loss_at(level: float, step: int) -> float:
    return level + 0.9 * math.exp(-step / 14) + 0.01 * math.sin(step)


def adapter_folder(folder: Path, number: int) -> Path:
    """Writes a PEFT adapter of one module, 8 by 4."""
    folder.mkdir(parents=True)
    r = params(number)["r"]
    random = np.random.default_rng(number)
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file(
        {
            f"{name}.lora_A.weight": random.normal(size=(r, 4)).astype(np.float32),
            f"{name}.lora_B.weight": random.normal(size=(8, r)).astype(np.float32),
        },
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": r, "lora_alpha": params(number)["lora_alpha"], "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def trial_events(search_id: str, number: int) -> list[Event]:
    status, steps, level, *_ = TRIALS[number]
    trial_id, at = f"{search_id}-t{number}", START + timedelta(minutes=4 * number)
    events: list[Event] = [
        TrialStarted(trial_id=trial_id, search_id=search_id, number=number, params=params(number), lane="lane-0", at=at)
    ]
    for step in range(5, steps + 1, 5):
        metrics = {"train_loss": loss_at(level, step) - 0.08, "learning_rate": params(number)["learning_rate"]}
        if step % 15 == 0:
            metrics["eval_loss"] = loss_at(level, step)
        moment = at + timedelta(seconds=3 * step)
        events.append(TrialReported(trial_id=trial_id, step=step, metrics=metrics, at=moment))
    metrics = {"steps": steps, "train_tokens": 376 * steps, "peak_memory_bytes": 1_610_612_736, "wall_s": 3.1 * steps}
    if steps:
        metrics |= {"eval_loss": loss_at(level, steps), "train_loss": loss_at(level, steps) - 0.08}
    message = "RuntimeError: loss is not finite at step 3" if status == "failed" else ""
    end = at + timedelta(minutes=3)
    events.append(TrialEnded(trial_id=trial_id, status=status, metrics=metrics, message=message, at=end))
    return events


def build(folder: Path) -> Made:
    """Makes a registry of one finished search: 8 trials, 3 of which kept an adapter, 1 of which was dropped since."""
    search_id = "s-4f2a9c1e"
    with Registry.open(folder / "registry.duckdb", create=True) as registry:
        events: list[Event] = [
            BaseSeen(base=base(), at=START),
            SearchStarted(
                search_id=search_id,
                name="lora-tiny",
                base_content_root=base().content_root,
                dataset={"name": "train.jsonl", "rows": 512},
                config={"model_name_or_path": "tiny/llama", "dataset": "train.jsonl", "space": "lora"},
                metric="eval_loss",
                mode="min",
                num_samples=8,
                seed=7,
                at=START,
            ),
        ]
        for number in TRIALS:
            events += trial_events(search_id, number)
        ids = {number: f"a{number}d41c7b90e{number}" for number in (*KEPT, 4)}
        for number, adapter_id in ids.items():
            _, steps, level, *_ = TRIALS[number]
            events.append(
                AdapterAdded(
                    adapter_id=adapter_id,
                    name=f"lora-tiny-{number}",
                    trial_id=f"{search_id}-t{number}",
                    base_content_root=base().content_root,
                    params=params(number),
                    metrics={
                        "eval_loss": loss_at(level, steps),
                        "train_loss": loss_at(level, steps) - 0.08,
                        "steps": steps,
                        "train_tokens": 376 * steps,
                        "peak_memory_bytes": 1_610_612_736 + number * 50_000_000,
                        "wall_s": 3.1 * steps + number,
                    },
                    artifact_sha256=registry.artifacts.add(adapter_folder(folder / "made" / str(number), number)),
                    at=START + timedelta(minutes=4 * number + 3),
                )
            )
        events += [
            AdapterDiscarded(adapter_id=ids[4], reason="not among the best 3", at=START + timedelta(minutes=33)),
            AliasMoved(name="lora-tiny-5", alias="champion", adapter_id=ids[5], at=START + timedelta(minutes=34)),
            Evaluated(
                evaluation_id="e-1",
                adapter_id=ids[5],
                base_content_root=base().content_root,
                dataset={"name": "held-out.jsonl"},
                metrics={"eval_loss": 2.0612, "perplexity": 7.8555},
                at=START + timedelta(minutes=40),
            ),
            Promoted(
                promotion_id="p-1",
                adapter_id=ids[5],
                status="done",
                recipe="full-precision",
                format="safetensors",
                output_path="models/champion",
                output_sha256="ef" * 32,
                checks={"reload": True},
                at=START + timedelta(minutes=45),
            ),
            SearchEnded(search_id=search_id, status="completed", at=START + timedelta(minutes=32)),
        ]
        registry.record(*events)
    return Made(
        path=folder / "registry.duckdb",
        search_id=search_id,
        best=ids[5],
        second=ids[2],
        prior=ids[0],
        discarded=ids[4],
    )
