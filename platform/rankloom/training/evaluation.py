"""Held-out loss, defined once: search, `rankloom evaluate` and promotion all measure with this function."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from rankloom.tokens import IGNORED


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Negative log-likelihood of every held-out row.

    Attributes:
        row_nll: Summed NLL of each row, nats, in the dataset's order.
        row_tokens: Tokens with loss of each row.
    """

    row_nll: tuple[float, ...]
    row_tokens: tuple[int, ...]

    @property
    def loss(self) -> float:
        """Mean NLL over all tokens with loss, nats a token."""
        return sum(self.row_nll) / sum(self.row_tokens)


def evaluate_loss(
    model: Any,
    rows: Sequence[dict[str, list[int]]] | Any,
    *,
    batch_size: int,
    autocast_dtype: torch.dtype | None,
    on_batch: Callable[[int, int], None] | None = None,
    on_logits: Callable[[int, torch.Tensor], None] | None = None,
) -> Evaluation:
    """Measure a causal language model's loss on tokenised rows.

    The mean is over tokens, not over batches, so it depends on neither batch size nor order.

    Args:
        model: A transformers (or PEFT) causal language model; left in the mode it came in.
        rows: Rows with `input_ids` and `labels` (lists of int of equal length; -100 carries no loss).
        batch_size: Rows a forward pass.
        autocast_dtype: bfloat16 or float16 to run under autocast as in training, else None or float32.
        on_batch: Called with (rows done, rows in all) after each batch.
        on_logits: Called with (index of a row, its logits) before its batch is done: float32, (tokens - 1,
            vocabulary), the scores of the token after each position.

    Returns:
        The NLL and token count of each row.
    """
    examples = [(list(row["input_ids"]), list(row["labels"])) for row in rows]
    # Rows of like length share a batch, so that little is spent on padding.
    order = sorted(range(len(examples)), key=lambda index: len(examples[index][0]))
    device = next(model.parameters()).device
    nll, tokens = [0.0] * len(examples), [0] * len(examples)
    done = 0
    with evaluating(model), torch.no_grad(), autocast(device, autocast_dtype):
        for start in range(0, len(order), batch_size):
            batch = order[start : start + batch_size]
            ids, mask, labels = _pad([examples[index] for index in batch], device)
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            # Row by row in fp32: the whole batch's logits in fp32 would be the largest tensor of the evaluation.
            for position, index in enumerate(batch):
                targets = labels[position, 1:]
                scores = logits[position, :-1].float()
                total = cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum")
                nll[index], tokens[index] = float(total), int((targets != IGNORED).sum())
                if on_logits is not None:
                    on_logits(index, scores[: len(examples[index][0]) - 1])
            done += len(batch)
            if on_batch is not None:
                on_batch(done, len(order))
    return Evaluation(row_nll=tuple(nll), row_tokens=tuple(tokens))


@contextlib.contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """Put a model in eval mode for a while."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def autocast(device: torch.device, dtype: torch.dtype | None) -> contextlib.AbstractContextManager[Any]:
    """Return the autocast context of `dtype`, or one that does nothing for float32 and None."""
    if dtype in (None, torch.float32):
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=dtype)


def _pad(
    examples: list[tuple[list[int], list[int]]], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids, _ in examples)
    ids = torch.zeros((len(examples), width), dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, (row_ids, row_labels) in enumerate(examples):
        ids[row, : len(row_ids)] = torch.tensor(row_ids)
        labels[row, : len(row_labels)] = torch.tensor(row_labels)
        mask[row, : len(row_ids)] = 1
    return ids.to(device), mask.to(device), labels.to(device)
