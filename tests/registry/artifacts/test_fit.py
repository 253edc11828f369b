from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankloom_registry import ArtifactError, ArtifactStore
from rankloom_registry.artifacts import FLAGS, check_against_base, check_folder
from rankloom_registry.formats.checkpoint import Checkpoint, open_checkpoint

Make = Callable[..., Path]
P = "base_model.model."
Q = "model.layers.0.self_attn.q_proj"


def ones(*shape: int) -> tuple[str, np.ndarray]:
    return "F32", np.ones(shape, np.float32)


def lora(module: str, inputs: int, outputs: int, r: int = 2) -> dict[str, tuple[str, np.ndarray]]:
    return {f"{P}{module}.lora_A.weight": ones(r, inputs), f"{P}{module}.lora_B.weight": ones(outputs, r)}


@pytest.fixture
def base(tmp_path: Path, write_safetensors: Make) -> Checkpoint:
    tensors = {
        "model.embed_tokens.weight": ones(16, 4),
        f"{Q}.weight": ones(6, 4),
        f"{Q}.bias": ones(6),
        "h.0.attn.c_attn.weight": ones(4, 12),
        "packed.weight": ("U8", np.ones((12, 1), np.uint8)),
        "score.weight": ones(3, 4),
    }
    return open_checkpoint(write_safetensors(tmp_path / "base" / "model.safetensors", tensors).parent)


@pytest.mark.parametrize(
    "tensors",
    [
        lora(Q, 4, 6),
        lora(Q, 4, 6) | {f"{P}{Q}.lora_magnitude_vector": ones(6), f"{P}{Q}.lora_B.bias": ones(6)},
        lora("transformer.h.0.attn.c_attn", 4, 12),  # Conv1D, and a checkpoint of the inner model
        lora("packed", 4, 6),
        lora("lm_head", 4, 16),  # tied to the embeddings
        {
            f"{P}model.embed_tokens.lora_embedding_A": ones(2, 16),
            f"{P}model.embed_tokens.lora_embedding_B": ones(4, 2),
        },
        lora(Q, 4, 6) | {f"{P}score.weight": ones(3, 4), f"{P}model.embed_tokens.weight": ones(16, 4)},
        lora(Q, 4, 6)
        | {f"{P}model.embed_tokens.token_adapter.trainable_tokens_delta": ones(5, 4), f"{P}{Q}.bias": ones(6)},
    ],
)
def test_what_fits(adapter_folder: Make, write_safetensors: Make, base: Checkpoint, tensors: dict[str, Any]) -> None:
    folder = adapter_folder(modules_to_save=["score"], bias="all")
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    check_folder(folder, allow=FLAGS)
    check_against_base(folder, base, allow=FLAGS)


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        (lora("model.layers.9.self_attn.q_proj", 4, 6), "has none in"),
        (lora(Q, 4, 6) | lora("nothing", 4, 6), r"nothing\.lora_A.*has none in"),
        ({name.removeprefix(P): value for name, value in lora(Q, 4, 6).items()}, "has none in"),
        (lora(Q, 5, 6), r"\[2, 5\], which does not fit \[6, 4\]"),
        (lora(Q, 4, 7), r"does not fit \[6, 4\]"),
        (lora(Q, 4, 4), r"does not fit \[6, 4\]"),  # each half fits one way round, and both together none
        (lora(Q, 4, 6) | {f"{P}{Q}.lora_magnitude_vector": ones(4)}, r"\[4\], which does not fit"),
        (lora("lm_head", 4, 17), r"does not fit \[16, 4\]"),
        (lora(Q, 4, 6) | {f"{P}score.weight": ones(4, 3)}, r"does not fit \[3, 4\]"),
        (lora(Q, 4, 6) | {f"{P}model.embed_tokens.weight": ones(17, 4)}, r"does not fit \[16, 4\]"),
        (
            lora(Q, 4, 6) | {f"{P}model.embed_tokens.token_adapter.trainable_tokens_delta": ones(5, 3)},
            r"does not fit \[16, 4\]",
        ),
    ],
)
def test_what_does_not(
    adapter_folder: Make, write_safetensors: Make, base: Checkpoint, tensors: dict[str, Any], reason: str
) -> None:
    folder = adapter_folder(modules_to_save=["score"])
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    with pytest.raises(ArtifactError, match=reason):
        check_against_base(folder, base, allow=FLAGS)


def test_a_bias_of_an_update_needs_none_of_the_module(
    adapter_folder: Make, write_safetensors: Make, base: Checkpoint
) -> None:
    for size, fits in ((3, True), (4, False)):
        folder = adapter_folder(f"adapter-{size}")
        tensors = lora("score", 4, 3) | {f"{P}score.lora_B.bias": ones(size)}
        write_safetensors(folder / "adapter_model.safetensors", tensors)
        with nullcontext() if fits else pytest.raises(ArtifactError, match=r"\[4\], which does not fit \[3, 4\]"):
            check_against_base(folder, base)


def test_a_head_is_tied_to_the_embeddings_whatever_they_are_called(
    adapter_folder: Make, write_safetensors: Make, tmp_path: Path
) -> None:
    file = write_safetensors(tmp_path / "base" / "model.safetensors", {"model.tok_embeddings.weight": ones(16, 4)})
    folder = adapter_folder()
    write_safetensors(folder / "adapter_model.safetensors", lora("lm_head", 4, 16))
    check_against_base(folder, open_checkpoint(file.parent))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_what_peft_saves_passes_unchanged(tmp_path: Path, kind: str) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {
        "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
        "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2},
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, vocab_size=32, **sizes[kind]))
    model.save_pretrained(tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    store = ArtifactStore(tmp_path / "store")
    settings: list[dict[str, Any]] = [
        {"target_modules": "all-linear"},
        {"target_modules": "all-linear", "use_dora": True, "use_rslora": True},
        {"target_modules": "all-linear", "init_lora_weights": "orthogonal", "task_type": "CAUSAL_LM"},
        {"target_modules": "all-linear", "rank_pattern": {".*mlp.*": 2}, "alpha_pattern": {".*mlp.*": 7}},
    ]
    for number, setting in enumerate(settings):
        folder = tmp_path / f"adapter-{number}"
        config = LoraConfig(r=4, **({"task_type": "CAUSAL_LM"} | setting))
        get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).save_pretrained(folder)
        check_folder(folder)
        check_against_base(folder, base)
        kept = store.checkout(store.add(folder))
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
            path.name: path.read_bytes() for path in kept.iterdir() if path.name != "manifest.json"
        }
