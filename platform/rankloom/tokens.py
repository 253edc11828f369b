"""From canonical rows to token ids and labels, as TRL's `SFTTrainer` makes them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from rankloom.errors import DataError

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

IGNORED = -100


def tokenise(
    rows: Dataset, tokenizer: PreTrainedTokenizerBase, *, max_length: int, completion_only_loss: bool | None
) -> Dataset:
    """Turn canonical rows into token ids and labels, as TRL's `SFTTrainer` does for the same columns.

    Args:
        rows: Rows with `text`, `messages`, or `prompt` and `completion`.
        tokenizer: The base's tokenizer; its chat template formats messages.
        max_length: Tokens a row is cut to, from the start.
        completion_only_loss: Whether labels of the prompt are -100; None means yes.

    Returns:
        A dataset of `input_ids` (list of int), `labels` (list of int), `cut` (bool) and `row` (the place among those
        given); rows without loss are left out.

    Raises:
        DataError: The rows are messages and the tokenizer has no chat template.
    """
    first = next(iter(rows[0].values()))
    if not isinstance(first, str) and not tokenizer.chat_template:
        raise DataError("the dataset holds messages but the base's tokenizer has no chat template: use plain text rows")
    mask_prompt = completion_only_loss is not False

    def encode(row: dict[str, Any], number: int) -> dict[str, Any]:
        prompt_ids, ids = encode_row(row, tokenizer)
        start = common_prefix(prompt_ids, ids) if mask_prompt else 0
        labels = [IGNORED] * start + ids[start:]
        cut = len(ids) > max_length
        return {"input_ids": ids[:max_length], "labels": labels[:max_length], "cut": cut, "row": number}

    tokens = rows.map(encode, with_indices=True, remove_columns=rows.column_names, load_from_cache_file=False)
    # The first label is never predicted, so a loss needs one beyond it.
    return tokens.filter(lambda row: any(label != IGNORED for label in row["labels"][1:]), load_from_cache_file=False)


def encode_row(row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the prompt's token ids (empty where there is no prompt) and those of the whole row."""
    if "messages" in row:
        return [], _template(tokenizer, row["messages"])
    if "text" in row:
        return [], _ids(tokenizer, _with_eos(row["text"], tokenizer))
    prompt, completion = row["prompt"], row["completion"]
    if isinstance(prompt, str):
        return encode_prompt(prompt, tokenizer), _ids(tokenizer, _with_eos(prompt + completion, tokenizer))
    return encode_prompt(prompt, tokenizer), _template(tokenizer, [*prompt, *completion])


def encode_prompt(prompt: str | list[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of what a model is to go on from: text as it is, messages by the chat template."""
    return (
        _ids(tokenizer, prompt) if isinstance(prompt, str) else _template(tokenizer, prompt, add_generation_prompt=True)
    )


def common_prefix(left: list[int], right: list[int]) -> int:
    """Return how many leading tokens two sequences share: where a completion starts, even if tokens merge."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(left, right, strict=False)))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def _template(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], **options: Any) -> list[int]:
    encoded: Any = tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    return list(encoded["input_ids"])


def _with_eos(text: str, tokenizer: PreTrainedTokenizerBase) -> str:
    end = tokenizer.eos_token or ""
    return text if text.endswith(end) else text + end
