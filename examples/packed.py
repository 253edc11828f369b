"""Three adapters at once on one base, without Ray: python examples/packed.py MODEL_FOLDER train.jsonl"""

import sys
import tempfile
from pathlib import Path

from datasets import load_from_disk

from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.data import prepare_data
from rankloom.training.exchange import LocalExchange, TrialSpec
from rankloom.training.packed.engine import PackedEngine
from rankloom.training.resident import load_resident_base

PARAMS = {"lora_alpha": 16, "use_rslora": False, "lora_dropout": 0.0, "target_modules": "all-linear", "seed": 0}


def main(model: str, dataset: str) -> dict[str, float]:
    training = TrainingConfig(max_steps=20, eval_steps=10, max_length=128)
    base = load_resident_base(Path(model), QuantizationConfig(), training)
    specs = [
        TrialSpec(trial_id=f"r{r}", number=number, params={**PARAMS, "r": r, "learning_rate": 1e-3})
        for number, r in enumerate((4, 8, 16))
    ]
    with tempfile.TemporaryDirectory() as folder:
        prepare_data(
            dataset=dataset,
            eval_dataset=None,
            eval_fraction=0.1,
            max_eval_samples=64,
            seed=0,
            tokenizer=base.tokenizer,
            max_length=training.max_length,
            completion_only_loss=None,
            folder=Path(folder),
        )
        exchange = LocalExchange(specs)
        PackedEngine(
            base=base,
            train_dataset=load_from_disk(f"{folder}/train"),
            eval_dataset=load_from_disk(f"{folder}/eval"),
            training=training,
            adapters=Path("adapters"),
            slots=len(specs),
        ).run(exchange)
    base.assert_unchanged()
    return {name: outcome.metrics["eval_loss"] for name, outcome in exchange.outcomes.items()}


if __name__ == "__main__":
    print(main(*sys.argv[1:]))
