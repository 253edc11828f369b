from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GPT2Config, LlamaConfig

from rankloom.config import QuantizationConfig
from rankloom.errors import MergeError, ModelError, PromotionError
from rankloom.exports.nf4 import export_nf4, refuse_quantized_base
from rankloom.models import leaf_modules
from rankloom.training.resident import base_checksum, keep_gradients_after_evaluation

LLAMA = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 150,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BASES: dict[str, Any] = {
    "untied": lambda: LlamaConfig(**LLAMA, tie_word_embeddings=False),
    "tied": lambda: LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "gpt2": lambda: GPT2Config(
        vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2
    ),
}


def save(folder: Path, kind: str = "untied", dtype: torch.dtype = torch.bfloat16, **options: Any) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(BASES[kind]()).to(dtype).save_pretrained(folder, **options)
    return folder


def logits(model: Any) -> torch.Tensor:
    keep_gradients_after_evaluation(model)  # bitsandbytes' repacked layers take only some shapes
    with torch.no_grad():
        found: torch.Tensor = model.eval()(torch.arange(20)[None]).logits
    return found


def four_bit_layers(model: Any) -> set[str]:
    return {name for name, module in model.named_modules() if type(module).__name__ == "Linear4bit"}


@pytest.mark.parametrize("double", [True, False], ids=["double", "single"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", BASES)
def test_it_loads_as_what_was_quantized_in_memory(tmp_path: Path, kind: str, dtype: torch.dtype, double: bool) -> None:
    merged = save(tmp_path / "merged", kind, dtype)
    export_nf4(merged, tmp_path / "nf4", QuantizationConfig(bnb_4bit_use_double_quant=double))
    wanted = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=double,
        bnb_4bit_compute_dtype=dtype,
    )
    expected = AutoModelForCausalLM.from_pretrained(merged, dtype=dtype, quantization_config=wanted)
    got = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4")
    assert base_checksum(got) == base_checksum(expected)
    assert torch.equal(logits(got), logits(expected))
    assert got.dtype == expected.dtype == dtype
    full = AutoModelForCausalLM.from_pretrained(merged, dtype=dtype)
    assert not torch.equal(logits(got), logits(full))

    leaves = {name for name, kind in leaf_modules(merged).items() if kind in ("Linear", "Conv1D")} - {"lm_head"}
    assert four_bit_layers(got) == leaves and len(leaves) == (8 if kind == "gpt2" else 14)
    layer = got.get_submodule(min(leaves))
    assert (layer.compute_dtype, layer.weight.quant_type) == (dtype, "nf4")
    assert layer.weight.quant_state.nested is double


def test_embeddings_and_head_keep_their_bits(tmp_path: Path) -> None:
    merged = save(tmp_path / "merged")
    export_nf4(merged, tmp_path / "nf4", QuantizationConfig())
    before = AutoModelForCausalLM.from_pretrained(merged).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4").state_dict()
    kept = [name for name in before if before[name].shape == after[name].shape]
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"} < set(kept)
    assert len(kept) == len(before) - 14
    assert all(torch.equal(before[name], after[name]) for name in kept)


def test_what_lies_beside_the_weights_is_copied_byte_for_byte(tmp_path: Path, tiny_model: Path) -> None:
    merged = shutil.copytree(tiny_model, tmp_path / "merged")
    (merged / "generation_config.json").write_text('{"temperature":   0.5}')
    (merged / "additional_chat_templates").mkdir()
    (merged / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (merged / "rankloom.json").write_text("{}")  # the manifest of another folder
    (merged / "modeling_custom.py").write_text("raise SystemExit")
    steps: list[tuple[int, int]] = []
    export_nf4(merged, tmp_path / "nf4", QuantizationConfig(), lambda *step: steps.append(step))
    names = {path.relative_to(tmp_path / "nf4").as_posix() for path in (tmp_path / "nf4").rglob("*") if path.is_file()}
    copied = {"generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    copied |= {"additional_chat_templates/tools.jinja"}
    assert names == copied | {"config.json", "model.safetensors"}
    for name in copied:
        assert (tmp_path / "nf4" / name).read_bytes() == (merged / name).read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (merged, tmp_path / "nf4"))
    assert after.pop("quantization_config")["bnb_4bit_quant_type"] == "nf4"
    assert after == before
    assert AutoTokenizer.from_pretrained(tmp_path / "nf4").chat_template
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert {path.name for path in tmp_path.iterdir()} == {"merged", "nf4"}


def test_no_generation_config_is_made_up(tmp_path: Path) -> None:
    merged = save(tmp_path / "merged")
    (merged / "generation_config.json").unlink()
    export_nf4(merged, tmp_path / "nf4", QuantizationConfig())
    assert not (tmp_path / "nf4" / "generation_config.json").exists()


def test_a_sharded_model_becomes_one_file(tmp_path: Path) -> None:
    merged = save(tmp_path / "merged", max_shard_size="40KB")
    assert len(list(merged.glob("*.safetensors"))) > 2
    export_nf4(merged, tmp_path / "nf4", QuantizationConfig())
    assert {path.name for path in (tmp_path / "nf4").glob("*.safetensors*")} == {"model.safetensors"}
    assert len(four_bit_layers(AutoModelForCausalLM.from_pretrained(tmp_path / "nf4"))) == 14


def test_a_config_without_dtype_is_given_one(tmp_path: Path) -> None:
    merged = save(tmp_path / "merged")
    config = json.loads((merged / "config.json").read_text())
    del config["dtype"]
    (merged / "config.json").write_text(json.dumps(config))
    export_nf4(merged, tmp_path / "nf4", QuantizationConfig())
    assert json.loads((tmp_path / "nf4" / "config.json").read_text())["dtype"] == "bfloat16"


def test_a_named_compute_dtype_is_kept(tmp_path: Path) -> None:
    merged = save(tmp_path / "merged")
    export_nf4(merged, tmp_path / "nf4", QuantizationConfig(bnb_4bit_compute_dtype="float16"))
    config = json.loads((tmp_path / "nf4" / "config.json").read_text())
    assert config["quantization_config"]["bnb_4bit_compute_dtype"] == "float16"
    with safe_open(tmp_path / "nf4" / "model.safetensors", framework="pt") as weights:
        assert weights.get_tensor("model.norm.weight").dtype == torch.bfloat16


@pytest.mark.parametrize(
    "quantization",
    [
        QuantizationConfig(bnb_4bit_quant_type="fp4"),
        QuantizationConfig(load_in_4bit=False, load_in_8bit=True),
        QuantizationConfig(load_in_4bit=False),
    ],
    ids=["fp4", "8-bit", "none"],
)
def test_only_nf4_is_called_nf4(tmp_path: Path, quantization: QuantizationConfig) -> None:
    with pytest.raises(PromotionError, match="load_in_4bit=True"):
        export_nf4(tmp_path, tmp_path / "nf4", quantization)


def test_what_is_quantized_is_not_quantized_again_nor_merged_into(tmp_path: Path) -> None:
    merged = save(tmp_path / "merged")
    refuse_quantized_base(merged)
    export_nf4(merged, tmp_path / "nf4", QuantizationConfig())
    for refused in (
        lambda: refuse_quantized_base(tmp_path / "nf4"),
        lambda: export_nf4(tmp_path / "nf4", tmp_path / "again", QuantizationConfig()),
    ):
        with pytest.raises(MergeError, match=r"quantized already \(bitsandbytes\).*2 to 17 %"):
            refused()
    assert not (tmp_path / "again").exists()
    # The tensors tell it, too.
    shutil.copy(merged / "config.json", tmp_path / "nf4" / "config.json")
    with pytest.raises(MergeError, match=r"quantized already \(bitsandbytes\)"):
        refuse_quantized_base(tmp_path / "nf4")


def test_an_unnamed_quantization_is_refused(tmp_path: Path) -> None:
    merged = save(tmp_path / "merged")
    config = json.loads((merged / "config.json").read_text()) | {"quantization_config": {"bits": 4}}
    (merged / "config.json").write_text(json.dumps(config))
    with pytest.raises(MergeError, match="quantized already"):
        refuse_quantized_base(merged)


def test_what_cannot_be_loaded_leaves_nothing(tmp_path: Path) -> None:
    merged = save(tmp_path / "merged")
    config = json.loads((merged / "config.json").read_text()) | {"model_type": "of-the-future", "architectures": []}
    (merged / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot load"):
        export_nf4(merged, tmp_path / "nf4", QuantizationConfig())
    with pytest.raises(MergeError, match="holds neither"):
        export_nf4(tmp_path, tmp_path / "nf4", QuantizationConfig())
    assert {path.name for path in tmp_path.iterdir()} == {"merged"}
