from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankloom_registry import ArtifactError
from rankloom_registry.artifacts.keys import base_tensor
from rankloom_registry.weights.touched import touched_tensors

NAMES = [
    "model.embed_tokens.weight",
    "model.layers.0.q_proj.weight",
    "model.layers.0.q_proj.bias",
    "model.layers.0.experts.gate_up_proj",
    "model.layers.0.experts.down_proj",
    "model.norm.weight",
]


@pytest.fixture
def adapter(tmp_path: Path, write_safetensors: Callable[..., Path]) -> Callable[..., Path]:
    """Makes an adapter folder that has these tensors; what they hold does not matter."""

    def make(*keys: str, **config: Any) -> Path:
        array = np.zeros((1, 1), np.float32)
        write_safetensors(tmp_path / "adapter_model.safetensors", dict.fromkeys(keys, ("F32", array)))
        (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"} | config))
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("keys", "config", "touched"),
    [
        (("model.layers.0.q_proj.lora_A.weight", "model.layers.0.q_proj.lora_B.weight"), {}, ["q_proj.weight"]),
        (("model.layers.0.q_proj.lora_magnitude_vector.weight",), {}, ["q_proj.weight"]),
        (("model.layers.0.q_proj.lora_B.bias",), {}, ["q_proj.bias"]),
        (("model.layers.0.q_proj.base_layer.bias",), {}, ["q_proj.bias"]),
        (("model.embed_tokens.lora_embedding_A", "model.embed_tokens.lora_embedding_B"), {}, ["embed_tokens.weight"]),
        (("model.embed_tokens.token_adapter.trainable_tokens_delta",), {}, ["embed_tokens.weight"]),
        (("model.embed_tokens.modules_to_save.weight",), {}, ["embed_tokens.weight"]),
        (("model.norm.weight",), {}, ["norm.weight"]),
        (("lm_head.lora_A.weight",), {}, ["embed_tokens.weight"]),
        (("lm_head.weight",), {}, ["embed_tokens.weight"]),
        (("language_model.lm_head.lora_A.weight",), {}, ["embed_tokens.weight"]),
        (
            ("model.layers.0.experts.base_layer.lora_A.weight", "model.layers.0.experts.lora_A.weight"),
            {"target_parameters": ["experts.gate_up_proj", "experts.down_proj"]},
            ["experts.gate_up_proj", "experts.down_proj"],
        ),
    ],
)
def test_every_kind_of_tensor_finds_its_place(
    adapter: Callable[..., Path], keys: tuple[str, ...], config: dict[str, Any], touched: list[str]
) -> None:
    found = touched_tensors(adapter(*(f"base_model.model.{key}" for key in keys), **config), NAMES)
    assert found == {name for name in NAMES if name.endswith(tuple(touched))} and len(found) == len(touched)


def test_an_untied_head_is_touched_itself(adapter: Callable[..., Path]) -> None:
    folder = adapter("base_model.model.lm_head.lora_A.weight")
    assert touched_tensors(folder, [*NAMES, "lm_head.weight"]) == {"lm_head.weight"}


def test_a_checkpoint_of_the_inner_model_lacks_the_first_part(adapter: Callable[..., Path]) -> None:
    folder = adapter("base_model.model.transformer.h.0.attn.c_attn.lora_A.weight")
    assert touched_tensors(folder, ["h.0.attn.c_attn.weight", "wte.weight"]) == {"h.0.attn.c_attn.weight"}
    assert base_tensor("transformer.h.0.weight", {"h.0.weight"}) == "h.0.weight"
    assert base_tensor("transformer.h.0.weight", {"h.1.weight"}) is None


def test_what_has_no_place_is_refused(adapter: Callable[..., Path]) -> None:
    for key in ("base_model.model.model.layers.1.q_proj.lora_A.weight", "unknown", "lm_head.lora_A.weight"):
        with pytest.raises(ArtifactError, match="has no place in the base"):
            touched_tensors(adapter(key), ["model.norm.weight"])
    with pytest.raises(ArtifactError, match="has no place in the base"):
        touched_tensors(adapter("model.norm.weight"), ["model.norm.weight"])  # PEFT's names have a prefix


def test_what_is_no_adapter_is_refused(adapter: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="layer_replication"):
        touched_tensors(adapter("base_model.model.model.norm.weight", layer_replication=[[0, 1]]), NAMES)
    with pytest.raises(ArtifactError, match="target_parameters"):
        touched_tensors(adapter("base_model.model.model.norm.weight", target_parameters=1), NAMES)
    config = adapter("base_model.model.model.norm.weight") / "adapter_config.json"
    (tmp_path / "adapter_model.safetensors").unlink()
    for content, reason in (("{}", "cannot read .*adapter_model"), ("{", "not JSON"), ("[]", "no JSON object")):
        config.write_text(content)
        with pytest.raises(ArtifactError, match=reason):
            touched_tensors(tmp_path, NAMES)
    config.unlink()
    with pytest.raises(ArtifactError, match="cannot read .*adapter_config"):
        touched_tensors(tmp_path, NAMES)
