"""How far a GGUF file says what its model says: teacher-forced on the same tokens, position by position."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rankloom.exports.gguf_runtime import GgufModel

# Closer than this, the two most probable tokens change places with the order of a sum.
CLEAR_MARGIN = 0.01
# Tokens asked for at each position; where the text's next token is not among them, all are.
_TOP = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOnText:
    """What a Transformers model says about one text.

    Attributes:
        text: The text.
        tokens: Its token ids.
        logprobs: Log probability of each next token, of shape (tokens, vocabulary).
    """

    text: str
    tokens: list[int]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class GgufParity:
    """A GGUF file beside its model.

    Attributes:
        positions: Positions compared.
        same_top1: Share of them at which both find the same token most probable.
        clear: Positions at which the model's two most probable tokens lie more than 0.01 nat apart.
        same_top1_clear: Share of those at which both find the same token most probable.
        widest_difference: The widest margin at which they do not, nats; 0 if they always do.
        mean_delta: Mean absolute difference of the log probability of the text's next token, nats.
        max_delta: The largest of them.
        differing_texts: Texts that llama.cpp cuts into other tokens than the model's tokenizer.
    """

    positions: int
    same_top1: float
    clear: int
    same_top1_clear: float
    widest_difference: float
    mean_delta: float
    max_delta: float
    differing_texts: tuple[str, ...]


def say(model: Any, tokenizer: Any, texts: Iterable[str]) -> list[ModelOnText]:
    """Run a Transformers model, in fp32 for a reference, over texts.

    Args:
        model: A causal language model, with an adapter or without.
        tokenizer: Its tokenizer.
        texts: What to run it over; a text of a single token has no next one, and counts in the tokenization only.
    """
    import torch

    said = []
    with torch.inference_mode():
        for text in texts:
            tokens = tokenizer(text)["input_ids"]
            logits = model(input_ids=torch.tensor([tokens], device=model.device)).logits[0]
            logprobs = torch.log_softmax(logits.float(), dim=-1).cpu().numpy()
            said.append(ModelOnText(text=text, tokens=tokens, logprobs=logprobs))
    return said


def compare(said: Sequence[ModelOnText], gguf: GgufModel) -> GgufParity:
    """Feed the model's tokens to a GGUF file and compare what follows each."""
    found = []
    for one in said:
        rows = gguf.logprobs(one.tokens, top=min(_TOP, gguf.vocab_size))
        for place, follows in enumerate(one.tokens[1:]):
            if np.isnan(rows[place, follows]):
                rows[place] = gguf.logprobs_after(one.tokens[: place + 1])
        found.append(rows)
    cut = [one.text for one in said if gguf.tokenize(one.text) != one.tokens]
    return differences(said, found, differing_texts=cut)


def differences(
    said: Sequence[ModelOnText], found: Sequence[NDArray[np.float32]], *, differing_texts: Sequence[str] = ()
) -> GgufParity:
    """Compare log probabilities with the model's.

    Args:
        said: What the model says, texts of at least two tokens among it.
        found: Log probabilities on the same tokens, of shape (tokens, vocabulary) each; the most probable tokens and
            the text's next one must be numbers, others may be NaN.
        differing_texts: What to report as such.
    """
    same, margins, deltas = [], [], []
    for one, rows in zip(said, found, strict=True):
        second, first = np.partition(one.logprobs, -2, axis=1)[:, -2:].T
        same.append(np.nanargmax(rows, axis=1) == one.logprobs.argmax(axis=1))
        margins.append(first - second)
        places = np.arange(len(one.tokens) - 1), one.tokens[1:]
        deltas.append(np.abs(rows[places] - one.logprobs[places]))
    top1, margin, delta = np.concatenate(same), np.concatenate(margins), np.concatenate(deltas)
    sure = margin > CLEAR_MARGIN
    return GgufParity(
        positions=len(top1),
        same_top1=float(top1.mean()),
        clear=int(sure.sum()),
        same_top1_clear=float(top1[sure].mean()) if sure.any() else float("nan"),
        widest_difference=float(margin[~top1].max(initial=0.0)),
        mean_delta=float(delta.mean()),
        max_delta=float(delta.max()),
        differing_texts=tuple(differing_texts),
    )


def write_in_f32(file: Path, output: Path) -> None:
    """Write the values that a GGUF file's tensors have as float32, and everything else as it is.

    llama.cpp rounds what it multiplies a tensor with to the tensor's own type (to blocks of 8 bits if that is a block
    type), as `vec_dot_type` in ggml-cpu.c says. Run this way, a file tells of its weights alone.

    Args:
        file: The file.
        output: The .gguf file to make.
    """
    import gguf

    reader = gguf.GGUFReader(file)
    architecture = gguf.Keys.General.ARCHITECTURE
    writer = gguf.GGUFWriter(output, reader.fields[architecture].contents())
    for name, field in reader.fields.items():
        if name != architecture and not name.startswith("GGUF."):  # the writer's own
            element = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], element)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, gguf.quants.dequantize(tensor.data, tensor.tensor_type))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
