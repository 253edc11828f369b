"""Measures the adapter as trained, and then every model that is made of it, on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from rankloom.config import SearchConfig
from rankloom.docstrings import reference_texts
from rankloom.evaluation.base import load_with_adapter
from rankloom.evaluation.bootstrap import mean_interval
from rankloom.evaluation.rows import HeldOut
from rankloom.models import BaseModel, load_tokenizer
from rankloom.promotion.drift import Drift, Reference
from rankloom.tokens import tokenise
from rankloom.training.resident import keep_gradients_after_evaluation, training_device

Tell = Callable[[str, int, int], None]
Drifts = dict[str, Drift]  # by split
HELD_OUT, GENERAL = "held-out", "general"
GENERAL_ROWS = 24
GENERAL_LENGTH = 128  # tokens


class Measuring:
    """The adapter on its quantized base, measured; what is made of it is measured against that.

    One model is in memory at a time.

    Attributes:
        trained: The adapter as trained, by split: loss in nats a token.
        trained_interval: The 95% interval of that.
        alone: Its base without it.
        floor: The adapter itself in another precision: the drift that rounding alone causes.
        rows: Number of rows of each split.
    """

    def __init__(
        self, folder: Path, files: Path, base: BaseModel, config: SearchConfig, held_out: HeldOut, tell: Tell
    ) -> None:
        """Measure the adapter.

        Args:
            folder: Where predictions are kept; whoever gave it removes it.
            files: The adapter's, as `Registry.checkout` gave them.
            base: Its base.
            config: How it was trained: quantization, batch size, precision.
            held_out: The rows that its search held out, or others.
            tell: Called with (stage, rows done, rows in all).
        """
        self._batch_size = config.training.per_device_eval_batch_size
        self._tell = tell
        splits = {HELD_OUT: held_out.tokens, GENERAL: general_rows(base, config.training.max_length)}
        self.rows = {split: len(rows) for split, rows in splits.items()}
        resident, model = load_with_adapter(files, base, config)
        self._dtype = resident.compute_dtype
        self._references = {
            split: Reference(
                model,
                rows,
                folder / f"{split}.predictions",
                batch_size=self._batch_size,
                dtype=self._dtype,
                on_batch=partial(tell, f"measure adapter, {split}"),
            )
            for split, rows in splits.items()
        }
        self.trained = {split: reference.evaluation.loss for split, reference in self._references.items()}
        self.trained_interval = {
            split: mean_interval(reference.evaluation.row_nll, reference.evaluation.row_tokens)
            for split, reference in self._references.items()
        }
        with model.disable_adapter():
            self.alone = self._compare("base", model, self._dtype)
        self.floor = self._compare("rounding", model, _other_precision(model, self._dtype))

    def folder(self, what: str, model: Path, **options: Any) -> Drifts:
        """Measure a model that lies in a folder.

        Args:
            what: What it is, for the progress.
            model: The folder.
            **options: What else `from_pretrained` needs.

        Returns:
            Its drift from the adapter, by split.
        """
        from transformers import AutoModelForCausalLM

        device = training_device()
        loaded = AutoModelForCausalLM.from_pretrained(
            model,
            **{"dtype": "auto"} | options,
            device_map={"": device},
            local_files_only=True,
            trust_remote_code=False,
        )
        keep_gradients_after_evaluation(loaded)  # and with them layers whose shapes that repacking cannot take
        return self._compare(what, loaded, self._dtype)

    def _compare(self, what: str, model: Any, dtype: torch.dtype | None) -> Drifts:
        return {
            split: reference.compare(model, dtype=dtype, on_batch=partial(self._tell, f"measure {what}, {split}"))
            for split, reference in self._references.items()
        }


def general_rows(base: BaseModel, max_length: int) -> Any:
    """Tokenise text of no task, to see what a model lost elsewhere: pages of Python's language reference.

    Args:
        base: Whose tokenizer.
        max_length: Tokens a row is cut to; 128 if that is less.
    """
    import datasets

    texts = reference_texts(GENERAL_ROWS)
    return tokenise(
        datasets.Dataset.from_dict({"text": texts}),
        load_tokenizer(base.path),
        max_length=min(max_length, GENERAL_LENGTH),
        completion_only_loss=None,
    )


def _other_precision(model: Any, dtype: torch.dtype) -> torch.dtype:
    """Make a quantized model compute in float32, or in bfloat16 if it does in float32; returns the new dtype."""
    other = torch.bfloat16 if dtype == torch.float32 else torch.float32
    for module in model.modules():
        if hasattr(module, "compute_dtype"):  # bitsandbytes' Linear4bit
            module.compute_dtype = other
    if other == torch.float32:
        for parameter in model.parameters():
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = parameter.data.float()
    return other
