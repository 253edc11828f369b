"""How long a trial takes into a slot and out of it, on a base that stays.

Usage: python benchmarks/admission.py MODEL_FOLDER
Prints one JSON document, in seconds, medians of five: making an adapter with its optimizer (in), and saving it as
PEFT's files (out), for two ranks on all linear layers; beside them, what loading the base takes.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.hush import hush
from rankloom.training.exchange import TrialSpec
from rankloom.training.packed.slot import Slot
from rankloom.training.resident import load_resident_base


def main(model: str) -> None:
    hush()
    training = TrainingConfig(max_steps=10)
    began = time.monotonic()
    base = load_resident_base(Path(model), QuantizationConfig(), training)
    found: dict[str, Any] = {"load_base_s": round(time.monotonic() - began, 3)}
    for r in (16, 64):
        enter, leave = [], []
        for seed in range(5):
            params = {"r": r, "lora_alpha": 16, "use_rslora": False, "lora_dropout": 0.0}
            params |= {"learning_rate": 1e-3, "target_modules": "all-linear", "seed": seed}
            with tempfile.TemporaryDirectory() as folder:
                began = time.monotonic()
                spec = TrialSpec(trial_id="trial", number=0, params=params)
                slot = Slot(spec, base, training, 100, Path(folder))
                enter.append(time.monotonic() - began)
                began = time.monotonic()
                slot.save_adapter(Path(folder) / "adapter")
                leave.append(time.monotonic() - began)
        found[f"r={r}"] = {"in_s": round(statistics.median(enter), 3), "out_s": round(statistics.median(leave), 3)}
    print(json.dumps(found))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/admission.py MODEL_FOLDER")
    main(sys.argv[1])
