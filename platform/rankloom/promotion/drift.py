"""How far a model is from the adapter as it was trained: in loss, with an interval, and in what it predicts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rankloom.evaluation.bootstrap import mean_interval, paired_interval
from rankloom.tokens import IGNORED
from rankloom.training.evaluation import Evaluation, evaluate_loss

OnBatch = Callable[[int, int], None]
MOST_BYTES = 1 << 30  # of predictions that are kept to compare with


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """A model beside the adapter as trained, on the same rows.

    Attributes:
        loss: Its loss, nats a token.
        interval: Ends of the 95% interval of `loss`, by a bootstrap over rows; None for a single row.
        delta: Its loss less the adapter's, nats a token.
        low: Lower end of the 95% interval of `delta`, by a paired bootstrap over rows; None for a single row.
        high: Its upper end.
        kl: Mean KL divergence from the adapter's predictions to the model's, nats.
        top1: Share of positions at which both find the same token most likely.
        positions: At how many positions predictions were compared.
    """

    loss: float
    interval: tuple[float, float] | None
    delta: float
    low: float | None
    high: float | None
    kl: float
    top1: float
    positions: int

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-ready values."""
        return asdict(self)


class Reference:
    """The adapter as trained, measured on some rows, and its predictions there, kept in a file.

    Attributes:
        evaluation: The NLL of each row.
    """

    def __init__(
        self,
        model: Any,
        rows: Any,
        file: Path,
        *,
        batch_size: int,
        dtype: torch.dtype | None,
        on_batch: OnBatch | None = None,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        """Measure a model.

        Args:
            model: The adapter on its quantized base.
            rows: Rows of `input_ids` and `labels`.
            file: Where to keep the log-probabilities, float32; removed by whoever gave the name.
            batch_size: Rows a forward pass.
            dtype: As for `evaluate_loss`.
            on_batch: Called with (rows done, rows in all).
            most_bytes: The most bytes of the file; where the rows have more positions with loss, it holds a part of
                them, drawn once.
        """
        self._rows = rows
        self._batch_size = batch_size
        width = model.get_output_embeddings().weight.shape[0]
        self._positions = _chosen(rows, max(1, most_bytes // (4 * width)))
        starts = np.cumsum([0, *(len(chosen) for chosen in self._positions)])
        self._spans = [slice(int(start), int(end)) for start, end in pairwise(starts)]
        shape = (int(starts[-1]), width)
        self._kept = np.memmap(file, np.float32, "w+", shape=shape)

        def keep(row: int, logits: torch.Tensor) -> None:
            scores = logits[self._positions[row]].log_softmax(-1)
            self._kept[self._spans[row]] = scores.cpu().numpy()

        self.evaluation = self._evaluate(model, dtype, on_batch, keep)

    def compare(self, model: Any, *, dtype: torch.dtype | None, on_batch: OnBatch | None = None) -> Drift:
        """Measure another model on the same rows.

        Args:
            model: A causal language model with the same vocabulary.
            dtype: As for `evaluate_loss`.
            on_batch: Called with (rows done, rows in all).
        """
        divergence, same = 0.0, 0

        def add(row: int, logits: torch.Tensor) -> None:
            nonlocal divergence, same
            expected = torch.from_numpy(np.asarray(self._kept[self._spans[row]])).to(logits.device)
            found = logits[self._positions[row]].log_softmax(-1)
            divergence += float(torch.nn.functional.kl_div(found, expected, reduction="sum", log_target=True))
            same += int((found.argmax(-1) == expected.argmax(-1)).sum())

        evaluation = self._evaluate(model, dtype, on_batch, add)
        positions = len(self._kept)
        tokens = evaluation.row_tokens
        low, high = paired_interval(self.evaluation.row_nll, evaluation.row_nll, tokens) or (None, None)
        return Drift(
            loss=evaluation.loss,
            interval=mean_interval(evaluation.row_nll, tokens),
            delta=evaluation.loss - self.evaluation.loss,
            low=low,
            high=high,
            kl=divergence / positions,
            top1=same / positions,
            positions=positions,
        )

    def _evaluate(
        self,
        model: Any,
        dtype: torch.dtype | None,
        on_batch: OnBatch | None,
        on_logits: Callable[[int, torch.Tensor], None],
    ) -> Evaluation:
        return evaluate_loss(
            model,
            self._rows,
            batch_size=self._batch_size,
            autocast_dtype=dtype,
            on_batch=on_batch,
            on_logits=on_logits,
        )


def _chosen(rows: Any, most: int) -> list[list[int]]:
    """Positions of each row whose next token carries loss; of all rows together at most so many."""
    every = [
        (index, position)
        for index, row in enumerate(rows)
        for position, label in enumerate(row["labels"][1:])
        if label != IGNORED
    ]
    if len(every) > most:
        picked = np.random.default_rng(0).choice(len(every), most, replace=False)
        every = [every[at] for at in sorted(picked.tolist())]
    chosen: list[list[int]] = [[] for _ in range(len(rows))]
    for index, position in every:
        chosen[index].append(position)
    return chosen
