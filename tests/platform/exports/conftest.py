"""Real adapters of every kind on a Llama of two layers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

LORAS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 8},
    "odd-factor": {"r": 6, "lora_alpha": 7},
    "rslora": {"r": 8, "lora_alpha": 7, "use_rslora": True},
    "ranks": {"r": 4, "lora_alpha": 8, "rank_pattern": {"q_proj": 2, r"layers\.1\..*v_proj": 7}},
    "alphas": {"r": 4, "lora_alpha": 8, "alpha_pattern": {"down_proj": 5, r".*\.0\..*": 13}},
    "ranks-and-alphas": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"down_proj": 3, "k_proj": 9},
        "alpha_pattern": {"down_proj": 5, "q_proj": 1},
    },
    "rslora-ranks-and-alphas": {
        "r": 4,
        "lora_alpha": 8,
        "use_rslora": True,
        "rank_pattern": {"down_proj": 3, "k_proj": 9},
        "alpha_pattern": {"down_proj": 5, "q_proj": 1},
    },
}


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers in float32 with an untied head."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    folder = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def save_adapter() -> Callable[..., Path]:
    """Saves an adapter with random weights, as PEFT does: (folder, base, dtype, **LoraConfig's options)."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    def save(folder: Path, base: Path, dtype: torch.dtype = torch.float32, **lora: Any) -> Path:
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(base)
        options = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
        adapted = peft.get_peft_model(model, peft.LoraConfig(**options))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
                parameter.data = parameter.data.to(dtype)
        adapted.save_pretrained(folder, save_embedding_layers=False)
        return folder

    return save


@pytest.fixture(params=LORAS)
def lora(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Options of a kind of LoRA."""
    options: dict[str, Any] = LORAS[request.param]
    return options
