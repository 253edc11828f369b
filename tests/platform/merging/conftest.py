"""Models of two layers and adapters for them, as Transformers and PEFT save them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    LlamaConfig,
    MixtralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 150,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
WIDE = {"hidden_size": 64, "intermediate_size": 192}  # whole blocks of 4-bit values in each row
EXPERTS: dict[str, Any] = {**SIZES, "intermediate_size": 48, "head_dim": 8, "num_experts_per_tok": 2}
BASES: dict[str, Callable[[], PretrainedConfig]] = {
    "llama": lambda: LlamaConfig(**SIZES, tie_word_embeddings=False),
    "llama-64": lambda: LlamaConfig(**SIZES | WIDE, tie_word_embeddings=False),
    "gpt2-64": lambda: GPT2Config(vocab_size=64, n_embd=64, n_layer=2, n_head=4, n_positions=32),
    "llama-tied": lambda: LlamaConfig(**SIZES, tie_word_embeddings=True),
    "qwen2": lambda: Qwen2Config(**SIZES, tie_word_embeddings=True),
    "gemma": lambda: GemmaConfig(**SIZES, head_dim=8),
    "gpt2": lambda: GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32),
    "phi3": lambda: Phi3Config(**SIZES, pad_token_id=0, tie_word_embeddings=False),
    "gpt-neox-tied": lambda: GPTNeoXConfig(**SIZES, tie_word_embeddings=True),
    "gpt-neox": lambda: GPTNeoXConfig(**SIZES, tie_word_embeddings=False),
    "mixtral": lambda: MixtralConfig(**EXPERTS, num_local_experts=3, tie_word_embeddings=False),
    "qwen3-moe": lambda: Qwen3MoeConfig(**EXPERTS, moe_intermediate_size=40, num_experts=3, tie_word_embeddings=False),
    "gpt-oss": lambda: GptOssConfig(**EXPERTS, num_local_experts=3, tie_word_embeddings=False),
}


def save_base(folder: Path, kind: str = "llama", dtype: torch.dtype = torch.float32, **options: Any) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(BASES[kind]()).to(dtype)
    model.save_pretrained(folder, **options)
    (folder / "chat_template.jinja").write_text("{{ messages }}\n")
    (folder / "tokenizer.json").write_text('{"spacing" :   "kept"}')
    (folder / "modeling_custom.py").write_text("raise SystemExit\n")
    return folder


def save_adapter(folder: Path, base: Path, **lora: Any) -> Path:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
    for name, parameter in adapted.named_parameters():
        if "magnitude" in name:
            parameter.data.mul_(1 + 0.2 * torch.rand_like(parameter))
        elif "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
        elif "modules_to_save" in name:
            parameter.data.add_(torch.randn_like(parameter))
    adapted.save_pretrained(folder, save_embedding_layers=False)
    return folder


def merged_by_peft(base: Path, adapter: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return dict(peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().state_dict())


def state_of(folder: Path, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    return dict(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).state_dict())


def assert_same_as_peft(base: Path, adapter: Path, output: Path, dtype: torch.dtype) -> None:
    expected, got, before = merged_by_peft(base, adapter, dtype), state_of(output, dtype), state_of(base, dtype)
    assert got.keys() == expected.keys()
    assert {name: int((got[name] != expected[name]).sum()) for name in got} == dict.fromkeys(got, 0)
    assert any(not torch.equal(got[name], before[name]) for name in got)


@pytest.fixture(scope="session")
def made() -> SimpleNamespace:
    """What makes bases and adapters, and compares a merge with PEFT's."""
    return SimpleNamespace(
        base=save_base,
        adapter=save_adapter,
        by_peft=merged_by_peft,
        state=state_of,
        same_as_peft=assert_same_as_peft,
    )


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A disk of the size that the test is given."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)
