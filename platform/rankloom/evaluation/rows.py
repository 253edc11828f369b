"""The rows that are measured on, and which question and answer each holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rankloom.config import SearchConfig
from rankloom.data import canonical_rows, load_rows, rows_hash, str_source
from rankloom.errors import DataError
from rankloom.evaluation.base import search_settings
from rankloom.models import BaseModel
from rankloom.tokens import tokenise
from rankloom_registry import Adapter, Registry

if TYPE_CHECKING:
    from datasets import Dataset

Prompt = str | list[dict[str, Any]]  # text, or messages


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Rows to measure on.

    Attributes:
        tokens: Rows of `input_ids` and `labels`.
        rows: The same rows as text.
        source: What they came from.
        sha256: Hash of the rows as text.
        max_length: Tokens that a row was cut to.
        cut: Whether a row was longer than that, so that its loss is of its beginning only.
        dropped: Rows that were left out, since no token with loss came before that.
    """

    tokens: Any
    rows: list[dict[str, Any]] = field(repr=False)
    source: str
    sha256: str
    max_length: int
    cut: tuple[bool, ...] = field(repr=False)
    dropped: int

    def first(self, limit: int | None) -> HeldOut:
        """Return the first rows only, at most so many; the hash, and what was dropped, stay those of all."""
        if limit is None or limit >= len(self.rows):
            return self
        return replace(self, tokens=self.tokens.select(range(limit)), rows=self.rows[:limit], cut=self.cut[:limit])

    def to_dict(self) -> dict[str, Any]:
        """Return what is recorded of the rows."""
        return {
            "source": self.source,
            "sha256": self.sha256,
            "rows": len(self.rows),
            "max_length": self.max_length,
            "cut_rows": sum(self.cut),
            "dropped_rows": self.dropped,
        }


def held_out_rows(registry: Registry, adapter: Adapter, dataset: Any, base: BaseModel) -> HeldOut:
    """Return rows to measure on: a dataset, or the held-out split of the adapter's own search.

    Raises:
        DataError: No dataset is given and the search's run folder is gone, or the dataset cannot be used.
    """
    config = search_settings(registry, adapter)
    if dataset is None:
        return _search_split(registry, adapter, config, base)
    rows, _ = canonical_rows(load_rows(dataset), str_source(dataset))
    tokens = _tokenised(rows, config, base)
    if not len(tokens):
        raise DataError(f"no row of {str_source(dataset)} has loss within max_length={config.training.max_length}")
    return _held_out(rows, tokens, str_source(dataset), config)


def _held_out(rows: Dataset, tokens: Dataset, source: str, config: SearchConfig) -> HeldOut:
    """Put rows beside their tokens, as `_tokenised` gave them."""
    return HeldOut(
        tokens=tokens.remove_columns(["cut", "row"]),
        rows=[rows[number] for number in tokens["row"]],
        source=source,
        sha256=rows_hash(rows),
        max_length=config.training.max_length,
        cut=tuple(tokens["cut"]),
        dropped=len(rows) - len(tokens),
    )


def _tokenised(rows: Dataset, config: SearchConfig, base: BaseModel) -> Dataset:
    from rankloom.models import load_tokenizer

    return tokenise(
        rows,
        load_tokenizer(base.path),
        max_length=config.training.max_length,
        completion_only_loss=config.training.completion_only_loss,
    )


def _search_split(registry: Registry, adapter: Adapter, config: SearchConfig, base: BaseModel) -> HeldOut:
    import json

    import datasets

    # Beside the registry as it was opened: the recorded path may be relative to another folder, or have moved with it.
    storage = config.storage if config.storage_path is not None else registry.path.with_suffix(".runs")
    if adapter.search_name is None:
        raise DataError(
            f"no search made adapter {adapter.adapter_id}, so there is no held-out split: give --dataset FILE"
        )
    folder = storage / adapter.search_name / "data"  # the adapter's own name may have been changed since
    if not (folder / "eval").is_dir() or not (folder / "eval.jsonl").is_file():
        raise DataError(f"the held-out split of {adapter.search_name!r} is not in {folder}: give --dataset FILE")
    # Split at line feeds alone: text may hold other characters that `splitlines` takes for the end of a line.
    lines = (folder / "eval.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    every = datasets.Dataset.from_list([json.loads(line) for line in lines])
    held_out = _held_out(every, _tokenised(every, config, base), f"held-out split of {adapter.search_name}", config)
    tokens = datasets.load_from_disk(str(folder / "eval"))  # those that the search measured
    if len(tokens) != len(held_out.rows):
        raise DataError(
            f"the held-out split in {folder} has tokens of {len(tokens)} rows, and text of {len(held_out.rows)}: "
            "give --dataset FILE"
        )
    return replace(held_out, tokens=tokens)


def question_of(row: Mapping[str, Any]) -> tuple[Prompt, str] | None:
    """Return what a model is asked in a row, and the answer that is expected; None where there is no answer.

    Args:
        row: A canonical row: `prompt` and `completion`, `messages`, or `text`. Of messages the last one is the answer,
            and the question all that stands before it.
    """
    if isinstance(row.get("prompt"), str):
        return row["prompt"], row["completion"]
    messages = _messages(row)
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or not messages[-1].get("content"):
        return None
    return messages[:-1], str(messages[-1]["content"])


def whole_text(row: Mapping[str, Any]) -> str:
    """Return a row without a question as people read it."""
    return as_text(row["text"] if "text" in row else _messages(row))


def _messages(row: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "prompt" in row:
        return [*row["prompt"], *row["completion"]]
    return row.get("messages") or []


def as_text(prompt: Prompt) -> str:
    """Return a prompt as people read it: text as it is, messages with who speaks."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in prompt)
