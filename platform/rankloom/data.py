"""From a dataset in any of TRL's shapes to token ids and labels, once for a whole search."""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankloom.errors import DataError
from rankloom.tokens import tokenise

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

FILE_BUILDERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
TYPES = "'text'; 'messages'; 'prompt' and 'completion'; or Alpaca or ShareGPT columns"


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSummary:
    """What was trained and evaluated on.

    Attributes:
        source: What the user gave.
        sha256: Hash of the canonical rows, train then eval: the same rows in the same order give the same hash.
        kind: 'text', 'messages' or 'prompt-completion'.
        train_rows: Rows that are trained on.
        eval_rows: Held-out rows.
        dropped_rows: Rows left out because `max_length` cuts off every token that carries loss.
        cut_rows: Rows shortened to `max_length`.
        train_tokens: Tokens in the training rows.
    """

    source: str
    sha256: str
    kind: str
    train_rows: int
    eval_rows: int
    dropped_rows: int
    cut_rows: int
    train_tokens: int

    def to_dict(self) -> dict[str, Any]:
        """Return the summary as JSON-ready values."""
        return asdict(self)


def prepare_data(
    *,
    dataset: Any,
    eval_dataset: Any,
    eval_fraction: float,
    max_eval_samples: int | None,
    seed: int,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    completion_only_loss: bool | None,
    folder: Path,
) -> DataSummary:
    """Load, convert, split and tokenise a dataset, and keep both splits under `folder`.

    `folder/train` and `folder/eval` hold tokenised rows (`input_ids`, `labels`: lists of int, equal lengths, loss is
    on labels other than -100); `folder/eval.jsonl` holds the held-out rows as text, for sample completions.

    Args:
        dataset: Hub id, file, folder, or `datasets.Dataset`.
        eval_dataset: Held-out rows in the same forms, or None to split `dataset`.
        eval_fraction: Share held out by the split.
        max_eval_samples: At most this many held-out rows, the first ones after the split.
        seed: Seed of the split.
        tokenizer: The base's tokenizer.
        max_length: Tokens a row is cut to.
        completion_only_loss: Whether the prompt is left out of the loss; None means yes where there is one.
        folder: Existing folder to write into.

    Returns:
        The summary, also written to `folder/summary.json`.

    Raises:
        DataError: Nothing to read, no rows, wrong columns, or no row left after tokenising.
    """
    rows, kind = canonical_rows(load_rows(dataset), str_source(dataset))
    if eval_dataset is None:
        if len(rows) < 2:
            raise DataError(f"a split needs at least 2 rows, {str_source(dataset)} has {len(rows)}: give eval_dataset")
        split = rows.train_test_split(test_size=max(1, round(len(rows) * eval_fraction)), seed=seed)
        train, held_out = split["train"], split["test"]
    else:
        train = rows
        held_out, eval_kind = canonical_rows(load_rows(eval_dataset), str_source(eval_dataset))
        if eval_kind != kind:
            raise DataError(f"dataset is of type {kind!r} but eval_dataset of type {eval_kind!r}: use one type")
    if max_eval_samples is not None:
        held_out = held_out.select(range(min(max_eval_samples, len(held_out))))

    tokens = {
        name: tokenise(part, tokenizer, max_length=max_length, completion_only_loss=completion_only_loss)
        for name, part in (("train", train), ("eval", held_out))
    }
    for name, part in tokens.items():
        if not len(part):
            raise DataError(
                f"no {name} row is left: max_length={max_length} cuts off every token with loss; raise max_length"
            )
        part.remove_columns(["cut", "row"]).save_to_disk(str(folder / name))
    with (folder / "eval.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in held_out)
    summary = DataSummary(
        source=str_source(dataset),
        sha256=rows_hash(train, held_out),
        kind=kind,
        train_rows=len(tokens["train"]),
        eval_rows=len(tokens["eval"]),
        dropped_rows=len(train) + len(held_out) - sum(map(len, tokens.values())),
        cut_rows=sum(sum(part["cut"]) for part in tokens.values()),
        train_tokens=sum(map(len, tokens["train"]["input_ids"])),
    )
    (folder / "summary.json").write_text(json.dumps(summary.to_dict(), indent=2), encoding="utf-8")
    return summary


def str_source(source: Any) -> str:
    """Return what to call a dataset in messages and records."""
    return str(source) if isinstance(source, str | os.PathLike) else f"<{type(source).__name__}>"


def load_rows(source: Any) -> Dataset:
    """Load rows from a hub id, a file, a folder or a `datasets.Dataset`.

    Raises:
        DataError: It does not exist, is empty, or is not of a known file type.
    """
    import datasets

    if isinstance(source, datasets.DatasetDict):
        source = _train_split(source, str_source(source))
    if isinstance(source, datasets.Dataset):
        return _not_empty(source, str_source(source))
    if not isinstance(source, str | os.PathLike):
        raise DataError(f"dataset must be a path, a hub id or a datasets.Dataset, got {type(source).__name__}")
    path = Path(source).expanduser()
    if not path.exists() and (path.suffix in FILE_BUILDERS or path.is_absolute() or str(source).startswith(".")):
        raise DataError(f"no dataset at {str(source)!r}: check the path")
    if path.is_file():
        return _load_file(path)
    datasets.disable_progress_bars()
    try:
        if path.is_dir() and (path / "dataset_info.json").exists():
            loaded = datasets.load_from_disk(str(path))
        else:
            loaded = datasets.load_dataset(str(path) if path.exists() else str(source))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(
            f"cannot load dataset {str(source)!r} ({type(error).__name__}): give a .jsonl, .json, .csv or .parquet "
            "file, a folder of them, or a hub id that can be reached"
        ) from error
    if isinstance(loaded, datasets.DatasetDict):
        loaded = _train_split(loaded, str(source))
    return _not_empty(loaded, str(source))


def _train_split(splits: Any, source: str) -> Dataset:
    if "train" not in splits:
        raise DataError(f"{source} has no 'train' split, it has {sorted(splits)}: pass one split as a Dataset")
    return splits["train"]


def _not_empty(rows: Dataset, source: str) -> Dataset:
    if not len(rows):
        raise DataError(f"{source} holds no rows: give a dataset with at least 2")
    return rows


def _load_file(path: Path) -> Dataset:
    import datasets

    builder = FILE_BUILDERS.get(path.suffix)
    if builder is None:
        raise DataError(f"a dataset file must end in {', '.join(FILE_BUILDERS)}, got {path.name!r}")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty: give a dataset with at least 2 rows")
    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(builder, data_files=glob.escape(str(path)), split="train")
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        cause = error.__cause__ or error
        raise DataError(
            f"{path} holds no rows, or is not {path.suffix[1:]}: {' '.join(str(cause).split())[:300]}; mend the file"
        ) from error
    return _not_empty(rows, str(path))


def canonical_rows(rows: Dataset, source: str) -> tuple[Dataset, str]:
    """Convert rows to one of the three shapes that are trained on.

    Args:
        rows: As loaded.
        source: Name of the dataset, for messages.

    Returns:
        Rows with the columns of one shape only, and the name of the shape.

    Raises:
        DataError: The columns fit no known shape; those found are named.
    """
    columns = set(rows.column_names)
    if {"prompt", "completion"} <= columns:
        return _checked(rows.select_columns(["prompt", "completion"]), source), "prompt-completion"
    if "messages" in columns:
        return _checked(rows.select_columns(["messages"]), source), "messages"
    if {"prompt", "chosen", "rejected"} <= columns:
        raise DataError(
            f"{source} holds preference rows (prompt, chosen, rejected); a search trains on {TYPES}: "
            "rename 'chosen' to 'completion' to train on the chosen answers"
        )
    if "conversations" in columns:
        return _checked(_convert(rows, _sharegpt, source), source), "messages"
    if {"instruction", "output"} <= columns:
        _checked(rows.select_columns(["instruction", "output"]), source)
        return _convert(rows, _alpaca, source), "prompt-completion"
    if "text" in columns:
        return _checked(rows.select_columns(["text"]), source), "text"
    wanted = {"prompt": "completion", "completion": "prompt", "instruction": "output", "output": "instruction"}
    missing = [f"{wanted[name]!r} (beside {name!r})" for name in sorted(columns & wanted.keys())]
    lacks = f"lacks the column {' or '.join(missing)}" if missing else "has none of the columns that are trained on"
    raise DataError(f"{source} {lacks}; found: {', '.join(sorted(columns))}; use {TYPES}")


def _convert(rows: Dataset, function: Callable[[dict[str, Any], str], dict[str, Any]], source: str) -> Dataset:
    def convert(row: dict[str, Any], number: int) -> dict[str, Any]:
        return function(row, f"{source}, row {number}")

    return rows.map(convert, with_indices=True, remove_columns=rows.column_names, load_from_cache_file=False)


def _sharegpt(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    messages = []
    for turn in row["conversations"]:
        role, content = ROLES.get(turn.get("from") or ""), turn.get("value")
        if role is None or content is None:
            raise DataError(f"{place}: a turn needs 'from' (one of {', '.join(ROLES)}) and 'value', got {dict(turn)!r}")
        messages.append({"role": role, "content": content})
    return {"messages": messages}


def _alpaca(row: Mapping[str, Any], place: str) -> dict[str, Any]:
    question = row["instruction"] + (f"\n\n{row['input']}" if row.get("input") else "")
    return {
        "prompt": [{"role": "user", "content": question}],
        "completion": [{"role": "assistant", "content": row["output"]}],
    }


def _checked(rows: Dataset, source: str) -> Dataset:
    for number, row in enumerate(rows):
        first = next(iter(row.values()))
        for column, value in row.items():
            if not _is_content(value) or type(value) is not type(first):
                raise DataError(
                    f"{source}, row {number}: {column!r} must be text or messages (each with 'role' and 'content'), "
                    f"not empty, and of one kind with the other columns, got {repr(value)[:200]}; "
                    "mend or remove the row"
                )
    return rows


def _is_content(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(map(_is_message, value))
    return isinstance(value, str) and bool(value)


def _is_message(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        return False
    # A call of a tool has no content; an empty one, as of a system prompt, is allowed.
    return value.get("content") is not None or bool(value.get("tool_calls"))


def rows_hash(*parts: Dataset) -> str:
    """Return the SHA-256 of the rows of each part, in order, as canonical JSON."""
    digest = hashlib.sha256()
    for part in parts:
        for row in part:
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False).encode() + b"\n")
        digest.update(b"\0")
    return digest.hexdigest()
