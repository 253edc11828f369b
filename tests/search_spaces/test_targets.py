"""Groups resolved on real models of two layers, held against what PEFT itself does with the answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from rankloom_spaces import SpaceError, linear_module_names, resolve_target_modules, target_groups

GROUPED = {
    "attention-qv": {"self_attn.q_proj", "self_attn.v_proj"},
    "attention": {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"},
    "mlp": {"mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"},
}


def _fused(qkv: str, out: str, *mlp: str) -> dict[str, set[str]]:
    return {"attention-qv": {qkv}, "attention": {qkv, out}, "mlp": set(mlp)}


def _separate(out: str, *mlp: str) -> dict[str, set[str]]:
    qv = {"self_attn.q_proj", "self_attn.v_proj"}
    return {"attention-qv": qv, "attention": qv | {"self_attn.k_proj", out}, "mlp": set(mlp)}


# What each group means in each family, by the ends of the names in one layer; written from the models' own code.
FAMILIES: dict[str, dict[str, set[str]]] = {
    "llama": GROUPED,
    "qwen2": GROUPED,
    "mistral": GROUPED,
    "gemma": GROUPED,
    "gpt2": _fused("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "gpt_bigcode": _fused("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"),
    "gpt_neox": _fused("attention.query_key_value", "attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "falcon": _fused(
        "self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"
    ),
    "bloom": _fused("self_attention.query_key_value", "self_attention.dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"),
    "mpt": _fused("attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj"),
    "phi3": _fused("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj"),
    "phi": _separate("self_attn.dense", "mlp.fc1", "mlp.fc2"),
    "opt": _separate("self_attn.out_proj", "fc1", "fc2"),
}
for groups in FAMILIES.values():
    groups["all-linear"] = groups["attention"] | groups["mlp"]


def build(family: str) -> PreTrainedModel:
    """A causal language model of two layers, on the meta device: names and classes without weights."""
    sizes: dict[str, Any] = {"vocab_size": 64, "num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
    if family == "mpt":  # keeps its own names for the sizes
        sizes = {"vocab_size": 64, "n_layers": 2, "d_model": 32, "n_heads": 4}
    elif family == "opt":
        sizes |= {"ffn_dim": 64, "word_embed_proj_dim": 32}
    elif family not in {"gpt2", "gpt_bigcode", "falcon", "bloom"}:
        sizes |= {"intermediate_size": 64}
    special = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **special))
    return model


def modules_of(model: torch.nn.Module) -> dict[str, str]:
    return {name: type(module).__name__ for name, module in model.named_modules() if not any(module.children())}


def hit_by_peft(family: str, target_modules: list[str] | str) -> set[str]:
    tuned = get_peft_model(build(family), LoraConfig(r=2, target_modules=target_modules, task_type="CAUSAL_LM"))
    return {
        name.removeprefix("base_model.model.")
        for name, module in tuned.named_modules()
        if isinstance(module, BaseTunerLayer)
    }


@pytest.mark.parametrize("group", ["attention-qv", "attention", "mlp", "all-linear"])
@pytest.mark.parametrize("family", FAMILIES)
def test_group_hits_exactly_the_intended_modules(family: str, group: str) -> None:
    modules = modules_of(build(family))
    ends = FAMILIES[family][group]
    intended = {name for name in modules if any(name.endswith(f".{end}") for end in ends)}
    assert len(intended) == 2 * len(ends)
    targets = resolve_target_modules(group, modules)
    assert targets == sorted(set(targets))
    assert all(any(name == target or name.endswith(f".{target}") for name in modules) for target in targets)
    assert hit_by_peft(family, targets) == intended


@pytest.mark.parametrize("family", ["llama", "gpt2", "falcon", "gpt_neox", "phi3"])
def test_all_linear_is_pefts_all_linear(family: str) -> None:
    modules = modules_of(build(family))
    assert set(linear_module_names(modules)) == hit_by_peft(family, "all-linear")


def test_every_family_is_tested_on_every_group() -> None:
    assert all(set(groups) == set(target_groups()) for groups in FAMILIES.values())


def test_suffixes_are_the_shortest_that_tell_attention_from_mlp() -> None:
    modules = modules_of(build("gpt2"))
    assert resolve_target_modules("attention", modules) == ["attn.c_proj", "c_attn"]
    assert resolve_target_modules("mlp", modules) == ["c_fc", "mlp.c_proj"]
    assert resolve_target_modules("all-linear", modules) == ["c_attn", "c_fc", "c_proj"]


def test_explicit_names_as_string_or_list_and_mixed_with_groups() -> None:
    modules = modules_of(build("llama"))
    assert resolve_target_modules("v_proj + q_proj", modules) == ["q_proj", "v_proj"]
    assert resolve_target_modules(["q_proj", "v_proj"], modules) == ["q_proj", "v_proj"]
    assert resolve_target_modules("attention-qv+mlp.down_proj", modules) == ["down_proj", "q_proj", "v_proj"]


def test_one_layer_alone_can_be_named() -> None:
    targets = resolve_target_modules("layers.1.self_attn.q_proj", modules_of(build("llama")))
    assert targets == ["1.self_attn.q_proj"]
    assert hit_by_peft("llama", targets) == {"model.layers.1.self_attn.q_proj"}


@pytest.mark.parametrize("kind", ["Linear", "Linear4bit", "Linear8bitLt", "Conv1D", "GgufLinear", "FalconLinear"])
def test_linear_kinds_are_recognised_and_the_head_is_not_one_of_them(kind: str) -> None:
    modules = {"layers.0.mlp.fc1": kind, "layers.0.norm": "LayerNorm", "lm_head": kind}
    assert linear_module_names(modules) == ["layers.0.mlp.fc1"]
    assert resolve_target_modules("all-linear", modules) == ["fc1"]


@pytest.mark.parametrize(
    "kind", ["Conv1d", "Embedding", "LinearScalingRotaryEmbedding", "NonDynamicallyQuantizableLinear"]
)
def test_other_kinds_are_not_linear(kind: str) -> None:
    assert linear_module_names({"layers.0.mixer.x": kind}) == []


def test_the_nearest_folder_tells_the_part() -> None:
    modules = {"attention_sink.layers.0.mlp.up": "Linear", "attention_sink.layers.0.attn.out": "Linear"}
    assert resolve_target_modules("mlp", modules) == ["up"]
    assert resolve_target_modules("attention", modules) == ["out"]


def test_a_suffix_never_reaches_a_container() -> None:
    modules = {"layers.0.ffn.mlp": "Linear", "layers.0.mlp.fc1": "Linear"}
    # `mlp` alone would do for the first, were it not the name of the folder that holds the second.
    assert resolve_target_modules("mlp", modules) == ["fc1", "ffn.mlp"]


def test_a_suffix_never_reaches_a_head_of_the_same_name() -> None:
    modules = {"layers.0.mlp.out": "Linear", "pooler.out": "Linear"}
    assert resolve_target_modules("mlp", modules) == ["mlp.out"]
    modules = {"layers.0.attention.score": "Linear", "layers.0.attention.query": "Linear", "score": "Linear"}
    assert resolve_target_modules("attention", modules) == ["query"]


def test_a_module_the_model_lacks_is_refused_with_those_it_has() -> None:
    modules = modules_of(build("gpt2"))
    with pytest.raises(SpaceError, match=r"no linear module for 'q_proj'.*c_attn, c_fc, c_proj"):
        resolve_target_modules("q_proj+c_attn", modules)
    with pytest.raises(SpaceError, match="did you mean 'attention'"):
        resolve_target_modules("atention", modules)


def test_the_output_head_and_embeddings_are_refused_by_name() -> None:
    modules = modules_of(build("llama"))
    for name in ("lm_head", "embed_tokens"):
        with pytest.raises(SpaceError, match=f"'{name}' is not a linear module an adapter can sit on"):
            resolve_target_modules(name, modules)


def test_a_group_the_model_lacks_is_refused() -> None:
    modules = {"backbone.layers.0.mixer.in_proj": "Linear", "lm_head": "Linear"}
    assert resolve_target_modules("all-linear", modules) == ["in_proj"]
    with pytest.raises(SpaceError, match="no linear module for 'attention'; it has in_proj"):
        resolve_target_modules("attention", modules)


def test_a_module_peft_cannot_tell_apart_is_refused() -> None:
    modules = {"attn.q_proj": "Linear", "encoder.attn.q_proj": "Linear"}
    assert resolve_target_modules("encoder.attn.q_proj", modules) == ["encoder.attn.q_proj"]
    with pytest.raises(SpaceError, match=r"cannot target 'mlp\.fc1' alone"):
        resolve_target_modules("mlp", {"mlp.fc1": "Linear", "x.mlp.fc1": "Embedding"})
