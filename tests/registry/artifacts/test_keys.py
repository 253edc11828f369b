from __future__ import annotations

import pytest

from rankloom_registry.artifacts.keys import Lora, Whole, changed_tensors, parse_key

P = "base_model.model."
BASE = ["model.tok_embeddings.weight", "model.q.weight", "model.q.bias", "model.experts.up", "model.experts.down"]


@pytest.mark.parametrize(
    ("name", "key", "changed"),
    [
        ("model.q.lora_A.weight", Lora(f"{P}model.q", "A"), ["model.q.weight"]),
        ("model.q.lora_B.weight", Lora(f"{P}model.q", "B"), ["model.q.weight"]),
        ("model.q.lora_B.bias", Lora(f"{P}model.q", "bias"), ["model.q.bias"]),
        ("model.q.lora_magnitude_vector", Lora(f"{P}model.q", "magnitude"), ["model.q.weight"]),
        ("model.q.lora_magnitude_vector.weight", Lora(f"{P}model.q", "magnitude"), ["model.q.weight"]),
        ("model.q.base_layer.bias", Whole(f"{P}model.q.base_layer", "bias"), ["model.q.bias"]),
        ("model.q.modules_to_save.weight", Whole(f"{P}model.q.modules_to_save", "weight"), ["model.q.weight"]),
        (
            "model.experts.base_layer.lora_A.weight",
            Lora(f"{P}model.experts.base_layer", "A"),
            ["model.experts.up", "model.experts.down"],
        ),
        (
            "model.tok_embeddings.lora_embedding_B",
            Lora(f"{P}model.tok_embeddings", "B"),
            ["model.tok_embeddings.weight"],
        ),
        (
            "model.tok_embeddings.token_adapter.trainable_tokens_delta",
            Whole(f"{P}model.tok_embeddings.token_adapter", "trainable_tokens_delta"),
            ["model.tok_embeddings.weight"],
        ),
        ("text.lm_head.lora_A.weight", Lora(f"{P}text.lm_head", "A"), ["model.tok_embeddings.weight"]),
        ("lm_head.lora_B.bias", Lora(f"{P}lm_head", "bias"), ["model.tok_embeddings.weight"]),
        ("lm_head.bias", Whole(f"{P}lm_head", "bias"), []),
        ("model.k.lora_A.weight", Lora(f"{P}model.k", "A"), []),
        ("model.q.lora_C.weight", Whole(f"{P}model.q.lora_C", "weight"), []),
    ],
)
def test_a_name_says_what_is_changed(name: str, key: Lora | Whole, changed: list[str]) -> None:
    found = parse_key(P + name)
    assert found == key and type(found) is type(key)
    assert changed_tensors(key, BASE, ["up", "down"]) == changed
    assert changed_tensors(key._replace(module=key.module.removeprefix(P)), BASE, ["up", "down"]) == []


def test_a_name_that_peft_does_not_write_says_nothing() -> None:
    for name in ("", "weight", f"{P}model.q.lora_A", f"{P}model.q.lora_A.default.scale"):
        assert parse_key(name) is None
