"""A small world that training, evaluation, promotion and the command line share: made once, copied where it changes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PARAMS: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "use_rslora": False,
    "lora_dropout": 0.0,
    "learning_rate": 1e-2,
    "target_modules": "all-linear",
    "seed": 0,
}


@dataclass(frozen=True)
class World:
    """A search as it lies on the disk after its end, made without Ray.

    Attributes:
        registry: The registry file; the run folder and the artifacts lie beside it.
        base: Folder of the base.
        adapters: Ids of its two adapters, the better one first.
    """

    registry: Path
    base: Path
    adapters: tuple[str, str]

    @property
    def eval_rows(self) -> Path:
        return self.registry.with_suffix(".runs") / "negation" / "data" / "eval.jsonl"


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, rows_file: Path) -> World:
    """Two adapters of one search on the tiny model, trained on NF4, recorded with everything a search records."""
    from datasets import load_from_disk

    from rankloom.config import parse_config
    from rankloom.data import prepare_data
    from rankloom.hush import hush
    from rankloom.models import load_tokenizer
    from rankloom.recorder import Recorder
    from rankloom.runs import plain_config
    from rankloom.training.exchange import LocalExchange, TrialSpec
    from rankloom.training.resident import load_resident_base
    from rankloom.training.trl import TrlEngine
    from rankloom_registry import (
        BaseSeen,
        Registry,
        SearchEnded,
        SearchStarted,
        TrialEnded,
        TrialReported,
        TrialStarted,
        fingerprint_base,
    )

    hush()
    folder = tmp_path_factory.mktemp("trained")
    # A relative path, as in most search files: what is read later must not depend on the folder it was written in.
    config = parse_config(
        {
            "model_name_or_path": str(tiny_model),
            "dataset": str(rows_file),
            "registry": "registry.duckdb",
            "name": "negation",
            "num_samples": 2,
            "training": {"max_steps": 12, "eval_steps": 4, "max_length": 48},
        }
    )
    run = folder / "registry.runs" / "negation"
    (run / "data").mkdir(parents=True)
    data = prepare_data(
        dataset=rows_file,
        eval_dataset=None,
        eval_fraction=0.2,
        max_eval_samples=None,
        seed=0,
        tokenizer=load_tokenizer(tiny_model),
        max_length=48,
        completion_only_loss=None,
        folder=run / "data",
    )
    engine = TrlEngine(
        base=load_resident_base(tiny_model, config.quantization, config.training),
        train_dataset=load_from_disk(str(run / "data" / "train")),
        eval_dataset=load_from_disk(str(run / "data" / "eval")),
        training=config.training,
        adapters=run / "adapters",
    )
    specs = [
        TrialSpec(trial_id="trial-good", number=0, params={**PARAMS, "learning_rate": 2e-2}),
        TrialSpec(trial_id="trial-slow", number=1, params={**PARAMS, "learning_rate": 1e-4, "r": 2, "seed": 1}),
    ]
    exchange = LocalExchange(specs)
    engine.run(exchange)

    fingerprint = fingerprint_base(tiny_model, identity=str(tiny_model))
    registry = Registry.open(folder / "registry.duckdb", create=True)
    registry.record(
        BaseSeen(base=fingerprint),
        SearchStarted(
            search_id="search-1",
            name="negation",
            base_content_root=fingerprint.content_root,
            dataset=data.to_dict(),
            config=plain_config(config),
            metric="eval_loss",
            mode="min",
            num_samples=2,
            seed=0,
        ),
    )
    recorder = Recorder(
        registry,
        search_id="search-1",
        name="negation",
        base_content_root=fingerprint.content_root,
        adapters=run / "adapters",
        keep_top=3,
    )
    for spec in specs:
        outcome = exchange.outcomes[spec.trial_id]
        assert outcome.status == "completed", outcome.message
        started = TrialStarted(
            trial_id=spec.trial_id, search_id="search-1", number=spec.number, params=spec.params, lane="lane-0"
        )
        # A lane reports the last evaluation as well.
        reports = [
            TrialReported(trial_id=spec.trial_id, step=metrics["steps"], metrics=metrics)
            for metrics in (*exchange.reports[spec.trial_id], outcome.metrics)
        ]
        ended = TrialEnded(trial_id=spec.trial_id, status="completed", metrics=outcome.metrics)
        recorder.record([started, *reports, ended])
    registry.record(SearchEnded(search_id="search-1", status="completed"))
    good, slow = (adapter.adapter_id for adapter in registry.adapters(order_by="eval_loss"))
    return World(registry=registry.path, base=tiny_model, adapters=(good, slow))


@pytest.fixture
def world(trained: World, tmp_path: Path) -> World:
    """A copy of the trained search that a test may change."""
    folder = shutil.copytree(trained.registry.parent, tmp_path / "world")
    return World(registry=folder / "registry.duckdb", base=trained.base, adapters=trained.adapters)


@pytest.fixture
def sharded_base(trained: World, tmp_path: Path) -> Path:
    """The base of the trained search with the same weights in three files, which a test may change."""
    import json

    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(trained.base, tmp_path / "sharded")
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places: dict[str, str] = {}
    for number in range(3):
        file = f"model-{number + 1:05}-of-00003.safetensors"
        shard = {name: weights[name] for name in sorted(weights)[number::3]}
        save_file(shard, folder / file, metadata={"format": "pt"})
        places |= dict.fromkeys(shard, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return folder
