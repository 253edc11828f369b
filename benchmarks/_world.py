"""What every benchmark trains on: a base, rows of known length, a grid of configurations, and the machine."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import tempfile
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from rankloom.docstrings import write_docstring_rows
from rankloom.models import cache_folder
from rankloom_spaces.space import DEFAULTS

# Shapes of SmolLM2-135M and of Llama-3.2-1B.
SHAPES: dict[str, dict[str, Any]] = {
    "135m": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
    },
}
RATES = 1e-4, 3e-3  # ends of the learning rates of a grid
PACKAGES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "ray", "optuna")
CHARACTERS_A_TOKEN = 6  # more than any row needs, so that each is cut to its full length


def random_llama(name: str) -> Path:
    """Return the folder of a Llama with random weights and a tokenizer of single bytes, made once."""
    folder = cache_folder() / "benchmarks" / f"random-llama-{name}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as partial:
            write_random_llama(Path(partial) / name, SHAPES[name])
            (Path(partial) / name).rename(folder)
    return folder


def write_random_llama(folder: Path, shape: dict[str, Any]) -> None:
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|end|>"]
    raw = Tokenizer(models.BPE(vocab={token: index for index, token in enumerate(tokens)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|end|>").save_pretrained(folder)
    end = len(tokens) - 1
    config = LlamaConfig(**shape, tie_word_embeddings=True, bos_token_id=None, eos_token_id=end, pad_token_id=end)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)


def random_rows(count: int, length: int, vocabulary: int, seed: int) -> Any:
    """Return rows of so many random tokens, all of which carry loss."""
    import torch
    from datasets import Dataset

    ids = torch.randint(vocabulary, (count, length), generator=torch.Generator().manual_seed(seed)).tolist()
    return Dataset.from_dict({"input_ids": ids, "labels": ids})


def write_text_rows(path: Path, length: int) -> None:
    """Write rows of real text that are `length` tokens or longer: docstrings of the standard library, end to end."""
    with tempfile.TemporaryDirectory() as folder:
        pairs = Path(folder) / "pairs.jsonl"
        write_docstring_rows(pairs)
        lines = pairs.read_text(encoding="utf-8").splitlines()
    rows, text = [], ""
    for line in lines:
        pair = json.loads(line)
        text += f"{pair['prompt']}{pair['completion']}\n\n"
        if len(text) >= CHARACTERS_A_TOKEN * length:
            rows.append({"text": text.strip()})
            text = ""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def axes(count: int, ranks: Sequence[int]) -> dict[str, list[Any]]:
    """Return the two axes of a grid: the ranks, and as many learning rates as make at least `count` points."""
    rates = math.ceil(count / len(ranks))
    low, high = RATES
    return {
        "learning_rate": [low * (high / low) ** (index / max(1, rates - 1)) for index in range(rates)],
        "r": list(ranks),
    }


def grid(axes: dict[str, list[Any]]) -> list[dict[str, Any]]:
    """Return the configurations of a grid; all but its axes is what a search takes by default."""
    points = (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))
    return [{**DEFAULTS, "use_rslora": False, **point} for point in points]


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    import torch

    processors = Path("/proc/cpuinfo")
    names = (
        [line for line in processors.read_text().splitlines() if line.startswith("model name")]
        if (processors.is_file())
        else []
    )
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "processor": names[0].partition(":")[2].strip() if names else "unknown",
        "cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions,
    }
