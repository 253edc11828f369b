"""The playground's model: one resident base with adapters on it, which take turns, a token each."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from rankloom.errors import RankloomError
from rankloom_registry import Registry, RegistryError

if TYPE_CHECKING:
    from rankloom.evaluation.base import SharedBase
    from rankloom.evaluation.generation import Continuation

IDLE_S = 600.0
_EVERY_S = 0.05  # seconds between two tellings of what was generated


class Talk(Protocol):
    """What `worker.Talk` is."""

    def __call__(self, message: dict[str, Any]) -> None:
        """Say something."""

    def hear(self, timeout_s: float | None = None) -> dict[str, Any] | None:
        """Return the next thing that is said."""


def play(order: dict[str, Any], tell: Talk) -> dict[str, Any]:
    """Load adapters and their base, and answer until nobody asks any more.

    What is told: `ready`; `turn` and its `answers` by subject (text, tokens, seconds, and why it ended); `problem`.

    Args:
        order: `registry`, `refs`, and maybe `base` and `idle_s`.
        tell: Says `generate`, `stop` and `load`.

    Returns:
        `ended`: 'idle'; whoever wants it to end sooner cancels it.
    """
    from rankloom.evaluation.base import SharedBase
    from rankloom.hush import hush

    hush()
    tell({"progress": ["prove the base", 0, 2]})
    shared = SharedBase(Registry.open(order["registry"]), order["refs"], base=order.get("base"))
    tell({"progress": ["load the base", 1, 2]})
    shared.load()
    tell({"progress": ["load the base", 2, 2]})
    _tell_ready(shared, tell)
    while True:
        match tell.hear(order.get("idle_s", IDLE_S)):
            case None:
                return {"ended": "idle"}
            case {"load": list(refs)}:
                try:
                    shared.take(refs)
                except (RankloomError, RegistryError) as error:
                    tell({"told": {"problem": str(error)}})
                _tell_ready(shared, tell)
            case {"generate": dict(wanted)}:
                _answer(shared, wanted, tell)


def _tell_ready(shared: SharedBase, tell: Talk) -> None:
    ready = {
        "subjects": [adapter.adapter_id for adapter in shared.adapters],
        "chat": bool(shared.resident.tokenizer.chat_template),
    }
    tell({"told": {"ready": ready}})


def _context(shared: SharedBase) -> int | None:
    """How many tokens the base can look at."""
    found = getattr(shared.model.config, "max_position_embeddings", None)
    return found if isinstance(found, int) else None


def _answer(shared: SharedBase, wanted: Mapping[str, Any], tell: Talk) -> None:
    """Let every subject answer, side by side, until it is told to stop."""
    import torch

    try:
        waiting = _begin(shared, wanted)
    except RankloomError as error:
        tell({"told": {"problem": str(error)}})
        return
    answers = dict(waiting)
    seconds = dict.fromkeys(answers, 0.0)
    started, last = time.monotonic(), 0.0
    stop = False
    try:
        while waiting and not stop:
            for subject, answer in waiting.items():
                with shared.active(subject) as model:
                    answer.step(model)
                seconds[subject] = time.monotonic() - started
            waiting = {subject: answer for subject, answer in waiting.items() if not answer.ended}
            if waiting and time.monotonic() - last > _EVERY_S:
                _tell_answers(wanted["turn"], answers, seconds, tell)
                last = time.monotonic()
            heard = tell.hear(0.0)
            stop = heard is not None and "stop" in heard
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        tell({"told": {"problem": "the device has no memory left for this conversation: begin a new one"}})
    for answer in waiting.values():
        answer.ended = "stopped"
    _tell_answers(wanted["turn"], answers, seconds, tell)


def _begin(shared: SharedBase, wanted: Mapping[str, Any]) -> dict[str, Continuation]:
    """Make ready what each subject goes on from; a conversation is its messages, alternately asked and answered."""
    from rankloom.evaluation.generation import Continuation, Sampling

    context = _context(shared)
    answers = {}
    for subject, messages in wanted["conversations"].items():
        prompt = _encode(shared, messages, chat=wanted["chat"])
        settings = dict(wanted["settings"])
        if context is not None:
            if len(prompt) >= context:
                raise RankloomError(
                    f"the conversation has {len(prompt)} tokens, the model looks at {context} at most: begin a new one"
                )
            settings["max_new_tokens"] = min(settings["max_new_tokens"], context - len(prompt))
        answers[subject] = Continuation(prompt, shared.resident, Sampling(**settings))
    return answers


def _encode(shared: SharedBase, messages: Sequence[Mapping[str, Any]], *, chat: bool) -> list[int]:
    from jinja2 import TemplateError

    from rankloom.tokens import encode_prompt

    tokenizer = shared.resident.tokenizer
    if not chat or not tokenizer.chat_template:
        return encode_prompt("".join(message["content"] for message in messages), tokenizer)
    try:
        return encode_prompt(list(map(dict, messages)), tokenizer)
    except TemplateError as error:
        raise RankloomError(f"the model's chat template refuses this conversation: {error}") from error


def _tell_answers(turn: int, answers: Mapping[str, Continuation], seconds: Mapping[str, float], tell: Talk) -> None:
    told = {
        subject: {
            "text": answer.text,
            "tokens": len(answer.tokens),
            "seconds": seconds[subject],
            "ended": answer.ended,
        }
        for subject, answer in answers.items()
    }
    tell({"told": {"turn": turn, "answers": told}})
