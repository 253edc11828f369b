from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankloom import models
from rankloom.errors import ModelError
from rankloom.models import dequantized, leaf_modules, load_model_config, load_tokenizer, resolve_base

gguf = pytest.importorskip("gguf")


@pytest.fixture
def base(tmp_path: Path, tiny_model: Path) -> Path:
    return shutil.copytree(tiny_model, tmp_path / "base")


def test_a_folder_is_its_own_base(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = resolve_base(str(base))
    assert (found.path, found.identity) == (base, str(base))
    monkeypatch.chdir(base.parent)
    assert resolve_base("base") == found


def test_an_at_sign_in_a_path_is_no_revision(tmp_path: Path, base: Path) -> None:
    odd = shutil.copytree(base, tmp_path / "me@work")
    found = resolve_base(str(odd))
    assert resolve_base(*models.split_identity(found.identity)) == found
    assert models.split_identity("org/model@0123abc") == ("org/model", "0123abc")
    assert models.split_identity("org/model") == ("org/model", None)


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no configuration": (lambda base: (base / "config.json").unlink(), "holds no config.json; point at the folder"),
    "no weights": (lambda base: (base / "model.safetensors").unlink(), "no safetensors weights .* save_pretrained"),
    "pickled weights": (
        lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"),
        "pickled .bin weights are not read",
    ),
    "no tokenizer": (lambda base: (base / "tokenizer.json").unlink(), "holds no tokenizer: save"),
}


@pytest.mark.parametrize(("spoil", "message"), FOLDERS.values(), ids=FOLDERS)
def test_a_folder_that_is_no_model(base: Path, spoil: Callable[[Path], object], message: str) -> None:
    spoil(base)
    with pytest.raises(ModelError, match=message):
        resolve_base(str(base))


def test_a_place_that_is_no_folder(tmp_path: Path, rows_file: Path) -> None:
    for name, message in {
        str(tmp_path / "none"): "no such folder",
        "./none": "no such folder",
        "~/no-such-model-folder": "no such folder",
        str(rows_file): "it is not a folder",
        "a b": "neither a folder nor a hub id",
        "a/b/c": "neither a folder nor a hub id",
    }.items():
        with pytest.raises(ModelError, match=message):
            resolve_base(name)


@pytest.mark.parametrize("name", ["no-such-owner/no-such-model", "no-such-model", "odd--name/model", "name-/model"])
def test_a_hub_id_that_cannot_be_had(name: str) -> None:
    with pytest.raises(ModelError, match="could not be had from the hub") as caught:
        resolve_base(name, "main")
    assert "check the spelling and the network" in str(caught.value) and repr(name) in str(caught.value)


def test_unreadable_parts(base: Path) -> None:
    (base / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        load_tokenizer(base)
    (base / "config.json").write_text(json.dumps({"model_type": "no-such-type"}))
    with pytest.raises(ModelError, match="cannot read the model configuration"):
        load_model_config(base)


def test_a_model_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ModelError, match="not a causal language model"):
        leaf_modules(tmp_path)


def test_leaf_modules(tiny_model: Path) -> None:
    found = leaf_modules(tiny_model)
    assert found["model.layers.0.self_attn.q_proj"] == "Linear"
    assert found["model.embed_tokens"] == "Embedding"
    assert "model.layers.0.self_attn" not in found


def test_a_tokenizer_is_given_a_padding_token(base: Path) -> None:
    file = base / "tokenizer_config.json"
    values = {name: value for name, value in json.loads(file.read_text()).items() if name != "pad_token"}
    file.write_text(json.dumps(values))
    assert load_tokenizer(base).pad_token == "<|im_end|>"
    file.write_text(json.dumps({name: value for name, value in values.items() if name != "eos_token"}))
    with pytest.raises(ModelError, match="no pad_token and no eos_token"):
        load_tokenizer(base)


def test_not_gguf(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    with pytest.raises(ModelError, match="no GGUF file at"):
        resolve_base(str(file))
    file.write_bytes(b"GGML" + bytes(64))
    with pytest.raises(ModelError, match="magic bytes"):
        resolve_base(str(file))


def write_gguf(path: Path, base: Path) -> dict[str, np.ndarray]:
    """Write the tiny Llama as a GGUF file in 8 bits, and return the embedding as its blocks hold it."""
    from safetensors.torch import load_file

    config = json.loads((base / "config.json").read_text())
    tokens = json.loads((base / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(config["hidden_size"] // config["num_attention_heads"])
    writer.add_vocab_size(config["vocab_size"])
    vocabulary = {**tokens["model"]["vocab"], **{token["content"]: token["id"] for token in tokens["added_tokens"]}}
    special = {token["id"] for token in tokens["added_tokens"]}
    names = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(names)
    writer.add_token_types([3 if vocabulary[name] in special else 1 for name in names])
    writer.add_token_merges([" ".join(pair) for pair in tokens["model"]["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    kept = {}
    names_map = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    for name, tensor in load_file(base / "model.safetensors").items():
        values = tensor.float().numpy()
        kind = gguf.GGMLQuantizationType.Q8_0 if values.ndim == 2 else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(values, kind)
        kept[name] = gguf.quants.dequantize(packed, kind)
        writer.add_tensor(names_map.get_name(name, (".weight",)), packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return kept


@pytest.fixture
def gguf_file(tmp_path: Path, tiny_model: Path) -> Path:
    write_gguf(tmp_path / "tiny.gguf", tiny_model)
    return tmp_path / "tiny.gguf"


def test_gguf_is_dequantized_once(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from safetensors.torch import load_file

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    kept = write_gguf(tmp_path / "tiny.gguf", tiny_model)
    found = resolve_base(str(tmp_path / "tiny.gguf"))
    assert found.identity == str(tmp_path / "tiny.gguf")
    assert found.path.parent == tmp_path / "cache" / "rankloom" / "models"
    weights = load_file(found.path / "model.safetensors")
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.down_proj.weight", "model.norm.weight"):
        assert torch.equal(weights[name], torch.from_numpy(kept[name]).to(torch.bfloat16)), name
    assert "quantization_config" not in json.loads((found.path / "config.json").read_text())
    text = "the girl has not loved piano"
    assert load_tokenizer(found.path)(text)["input_ids"] == load_tokenizer(tiny_model)(text)["input_ids"]

    before = (found.path / "model.safetensors").stat().st_mtime_ns
    assert resolve_base(str(tmp_path / "tiny.gguf")) == found
    assert (found.path / "model.safetensors").stat().st_mtime_ns == before


def test_a_failed_dequantization_leaves_nothing(
    tmp_path: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def interrupt(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    # The tokenizer comes after the weights: half of the folder is written by then.
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        dequantized(gguf_file)
    assert list((tmp_path / "cache" / "rankloom" / "models").iterdir()) == []


def test_a_torn_gguf(tmp_path: Path, gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    gguf_file.write_bytes(gguf_file.read_bytes()[:2000])
    with pytest.raises(ModelError, match="cannot be read as a GGUF model"):
        dequantized(gguf_file)
    assert list((tmp_path / "cache" / "rankloom" / "models").iterdir()) == []
