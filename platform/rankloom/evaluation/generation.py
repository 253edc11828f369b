"""What a model says to a prompt: many prompts at once and greedily, or one, a token at a time."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from rankloom.training.evaluation import autocast, evaluating

if TYPE_CHECKING:
    from rankloom.training.resident import ResidentBase


def generate_greedily(
    model: Any,
    resident: ResidentBase,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int = 1,
    on_batch: Callable[[int, int], None] | None = None,
) -> list[str]:
    """Let a model go on from each prompt with the likeliest token at each step.

    Args:
        model: The resident base, with or without an adapter on it.
        resident: That base.
        prompts: Token ids of each.
        max_new_tokens: Tokens to generate at most.
        batch_size: Prompts a forward pass.
        on_batch: Called with (prompts done, prompts in all) after each batch.

    Returns:
        What it said, without special tokens.
    """
    tokenizer = resident.tokenizer
    device = next(model.parameters()).device
    ends = sorted(end_ids(model, tokenizer)) or None
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts = [""] * len(prompts)
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        width = max(len(prompts[index]) for index in batch)
        # On the left, so that what is generated follows the prompt at once.
        ids = [[tokenizer.pad_token_id] * (width - len(prompts[index])) + prompts[index] for index in batch]
        mask = [[0] * (width - len(prompts[index])) + [1] * len(prompts[index]) for index in batch]
        with evaluating(model), _own_settings(model), torch.no_grad(), autocast(device, resident.compute_dtype):
            output = model.generate(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(mask, device=device),
                do_sample=False,
                num_beams=1,
                max_new_tokens=max_new_tokens,
                eos_token_id=ends,
                pad_token_id=tokenizer.pad_token_id,
                use_cache=True,
            )
        for index, row in zip(batch, output[:, width:].tolist(), strict=True):
            texts[index] = str(tokenizer.decode(row, skip_special_tokens=True))
        if on_batch is not None:
            on_batch(start + len(batch), len(order))
    return texts


@contextmanager
def _own_settings(model: Any) -> Iterator[None]:
    """Keep the settings that a base brings for generation (sampling, penalties, forbidden words) out of it."""
    from transformers import GenerationConfig

    base = _base_of(model)
    theirs, base.generation_config = base.generation_config, GenerationConfig()
    try:
        yield
    finally:
        base.generation_config = theirs


def end_ids(model: Any, tokenizer: Any) -> set[int]:
    """Return the tokens with which an answer ends."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    several = configured if isinstance(configured, list) else [configured]
    return {token for token in (*several, tokenizer.eos_token_id) if token is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        temperature: 0 takes the likeliest; higher values take others more often.
        top_p: Only the likeliest tokens that together have this probability are drawn from.
        max_new_tokens: Tokens to generate at most.
        seed: Of the draws.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0


class Continuation:
    """What a model says to one prompt, a token a step, so that several can take turns on one base.

    Attributes:
        tokens: The token ids so far.
        ended: Why there are no more: 'end' for the model's own, 'length' for `max_new_tokens`; empty until then.
    """

    def __init__(self, prompt: Sequence[int], resident: ResidentBase, sampling: Sampling) -> None:
        """Begin.

        Args:
            prompt: Its token ids.
            resident: The base on which it is generated.
            sampling: How tokens are chosen.
        """
        self.tokens: list[int] = []
        self.ended = ""
        self._fresh = list(prompt)
        self._resident = resident
        self._sampling = sampling
        self._cache: Any = None
        # Drawn on the CPU: a seed then means the same on every device.
        self._draws = torch.Generator().manual_seed(sampling.seed)

    @property
    def text(self) -> str:
        """What was said so far, without special tokens."""
        text = str(self._resident.tokenizer.decode(self.tokens, skip_special_tokens=True))
        return text if self.ended else text.rstrip("\ufffd")  # a letter of which some bytes are still to come

    def step(self, model: Any) -> None:
        """Add a token.

        Args:
            model: The base with the adapter that speaks active; the same at each step.
        """
        device = next(model.parameters()).device
        with evaluating(model), torch.no_grad(), autocast(device, self._resident.compute_dtype):
            output = model(
                input_ids=torch.tensor([self._fresh], device=device),
                past_key_values=self._cache,
                use_cache=True,
                **_last_only(model),
            )
        self._cache = output.past_key_values
        token = self._choose(output.logits[:, -1].float().cpu())
        self._fresh = [token]
        if token in end_ids(model, self._resident.tokenizer):
            self.ended = "end"
            return
        self.tokens.append(token)
        if len(self.tokens) >= self._sampling.max_new_tokens:
            self.ended = "length"

    def _choose(self, scores: torch.Tensor) -> int:
        from transformers import TemperatureLogitsWarper, TopPLogitsWarper

        if self._sampling.temperature <= 0:
            return int(scores.argmax(-1))
        ids = torch.empty((1, 0), dtype=torch.long)  # which these warpers do not look at
        scores = TemperatureLogitsWarper(self._sampling.temperature)(ids, scores)
        if self._sampling.top_p < 1:
            scores = TopPLogitsWarper(self._sampling.top_p)(ids, scores)
        return int(torch.multinomial(scores.softmax(-1), 1, generator=self._draws))


def _last_only(model: Any) -> dict[str, int]:
    """What keeps a model from scoring every token of a prompt, which may need more memory than itself."""
    return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(_base_of(model).forward).parameters else {}


def _base_of(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model
