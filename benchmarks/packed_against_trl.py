"""The same configuration through both engines, step by step, as one table.

Usage: python benchmarks/packed_against_trl.py MODEL_FOLDER [float32|bfloat16]
The packed trial runs beside three others. Rows are docstrings of the standard library.
"""

from __future__ import annotations

import contextlib
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import load_from_disk

from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.data import prepare_data
from rankloom.docstrings import write_docstring_rows
from rankloom.hush import hush
from rankloom.models import load_tokenizer
from rankloom.training.exchange import LocalExchange, TrialSpec
from rankloom.training.packed.engine import PackedEngine
from rankloom.training.resident import load_resident_base
from rankloom.training.trl import TrlEngine

STEPS = 12
PARAMS: dict[str, Any] = {
    "r": 16,
    "lora_alpha": 16,
    "use_rslora": False,
    "lora_dropout": 0.0,
    "learning_rate": 1e-3,
    "target_modules": "all-linear",
    "seed": 0,
}
BESIDE: list[dict[str, Any]] = [
    {"r": 4, "seed": 1},
    {"r": 8, "target_modules": "attention", "learning_rate": 3e-3, "seed": 2},
    {"r": 32, "lora_dropout": 0.1, "seed": 3},
]


def main(model: str, compute_dtype: Any = "float32") -> None:
    hush()
    training = TrainingConfig(max_steps=STEPS, eval_steps=1, per_device_train_batch_size=2, max_length=96)
    quantization = QuantizationConfig(bnb_4bit_compute_dtype=compute_dtype)
    spec = TrialSpec(trial_id="trial", number=0, params=PARAMS)
    beside = [
        TrialSpec(trial_id=f"beside-{number}", number=number, params={**PARAMS, **changes})
        for number, changes in enumerate(BESIDE, start=1)
    ]
    with tempfile.TemporaryDirectory(prefix="rankloom-benchmark-") as folder:
        rows = Path(folder) / "rows.jsonl"
        write_docstring_rows(rows)
        prepare_data(
            dataset=rows,
            eval_dataset=None,
            eval_fraction=0.1,
            max_eval_samples=8,
            seed=0,
            tokenizer=load_tokenizer(Path(model)),
            max_length=training.max_length,
            completion_only_loss=None,
            folder=Path(folder),
        )
        shared: dict[str, Any] = {
            "base": load_resident_base(Path(model), quantization, training),
            "train_dataset": load_from_disk(f"{folder}/train"),
            "eval_dataset": load_from_disk(f"{folder}/eval"),
            "training": training,
            "adapters": Path(folder) / "adapters",
        }
        alone, packed = LocalExchange([spec]), LocalExchange([spec, *beside])
        with contextlib.redirect_stdout(io.StringIO()):
            TrlEngine(**shared).run(alone)
        PackedEngine(**shared, slots=4).run(packed)
    curves = [[*run.reports["trial"], run.outcomes["trial"].metrics] for run in (alone, packed)]
    print("| step | train loss, TRL | packed | held-out loss, TRL | packed | relative difference |")
    print("|---|---|---|---|---|---|")
    for left, right in zip(*curves, strict=True):
        difference = max(abs(left[name] - right[name]) / left[name] for name in ("train_loss", "eval_loss"))
        figures = (left["train_loss"], right["train_loss"], left["eval_loss"], right["eval_loss"])
        print(f"| {left['steps']} | " + " | ".join(f"{figure:.6f}" for figure in figures) + f" | {difference:.1e} |")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit("usage: python benchmarks/packed_against_trl.py MODEL_FOLDER [float32|bfloat16]")
    main(*sys.argv[1:])
