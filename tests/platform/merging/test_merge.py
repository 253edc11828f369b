from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save_file

from rankloom.errors import MergeError
from rankloom.merging import blocks
from rankloom.merging.lora import Lora
from rankloom.merging.merge import merge_adapter
from rankloom.outputs import file_sha256, folder_sha256

KINDS = ["llama", "llama-tied", "qwen2", "gemma", "gpt2", "phi3", "gpt-neox", "gpt-neox-tied"]
LORAS: dict[str, dict[str, Any]] = {
    "dora": {"r": 4, "lora_alpha": 8, "use_dora": True},
    "lora": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 4, "lora_alpha": 7, "use_rslora": True},
    # The first pattern is a suffix, the second a regular expression, the third matches a whole name or nothing.
    "patterns": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"c_proj": 2, r"layers\.1\..*q_proj": 3, "proj": 8},
        "alpha_pattern": {r"(down|c)_proj": 5, r".*\.0\..*": 13},
    },
}


@pytest.fixture(scope="module")
def saved(made: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    made.adapter(folder / "adapter", made.base(folder / "base"))
    return folder


@pytest.fixture
def base(tmp_path: Path, saved: Path) -> Path:
    return shutil.copytree(saved / "base", tmp_path / "base")


@pytest.fixture
def adapter(tmp_path: Path, saved: Path) -> Path:
    return shutil.copytree(saved / "adapter", tmp_path / "adapter")


@pytest.mark.parametrize("lora", LORAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_element_differs_from_peft(made: Any, tmp_path: Path, kind: str, dtype: torch.dtype, lora: str) -> None:
    base = made.base(tmp_path / "base", kind, dtype)
    adapter = made.adapter(tmp_path / "adapter", base, **LORAS[lora])
    report = merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    assert report.modules_merged == {"gpt2": 8, "phi3": 8, "gpt-neox": 8, "gpt-neox-tied": 8}.get(kind, 14)
    made.same_as_peft(base, adapter, tmp_path / "merged", dtype)


@pytest.mark.parametrize(("kind", "dtype"), [("llama", torch.bfloat16), ("gpt2", torch.float16)])
def test_blocks_of_rows_change_nothing(
    made: Any, tmp_path: Path, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = made.base(tmp_path / "base", kind, dtype)
    adapter = made.adapter(tmp_path / "adapter", base)
    monkeypatch.setitem(blocks.BLOCK_BYTES, "cpu", 1)  # 64 rows: several blocks a tensor, and the last one is smaller
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    made.same_as_peft(base, adapter, tmp_path / "merged", dtype)


def test_sharded_base_keeps_its_shards(made: Any, tmp_path: Path) -> None:
    base = made.base(tmp_path / "base", max_shard_size="20KB")
    adapter = made.adapter(tmp_path / "adapter", base)
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    shards = sorted(path.name for path in base.glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(path.name for path in (tmp_path / "merged").glob("*.safetensors")) == shards
    made.same_as_peft(base, adapter, tmp_path / "merged", torch.float32)


def test_checkpoint_of_the_inner_model(made: Any, tmp_path: Path) -> None:
    base = made.base(tmp_path / "base", "gpt2")
    weights = load_file(base / "model.safetensors")
    inner = {name.removeprefix("transformer."): weight for name, weight in weights.items()}
    save_file(inner, base / "model.safetensors", metadata={"format": "pt"})
    adapter = made.adapter(tmp_path / "adapter", base)
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    assert load_file(tmp_path / "merged" / "model.safetensors").keys() == inner.keys()
    made.same_as_peft(base, adapter, tmp_path / "merged", torch.float32)


def test_an_adapter_that_changed_its_base_is_merged_once_converted(tmp_path: Path, base: Path) -> None:
    torch.manual_seed(1)
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM")
    trained = get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), config)
    trained.save_pretrained(tmp_path / "initial")
    edit_json(tmp_path / "initial" / "adapter_config.json", init_lora_weights=True)  # as PEFT's guide has it
    for name, parameter in trained.named_parameters():
        if "lora_" in name:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    tokens = torch.arange(20)[None]
    expected = trained(tokens).logits
    trained.save_pretrained(tmp_path / "own", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    merge_adapter(adapter=tmp_path / "own", base=base, output=tmp_path / "merged")
    merged = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(tokens).logits
    torch.testing.assert_close(merged, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float8_e4m3fn])
def test_adapters_of_any_float_are_merged_as_fp32(
    made: Any, tmp_path: Path, base: Path, adapter: Path, dtype: torch.dtype
) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    save_file({name: tensor.float() for name, tensor in load_file(path).items()}, path)
    made.same_as_peft(base, adapter, tmp_path / "merged", torch.float32)


def test_untied_output_head_is_merged(made: Any, tmp_path: Path, base: Path) -> None:
    adapter = made.adapter(tmp_path / "adapter", base, target_modules=["lm_head", "q_proj"])
    assert merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged").modules_merged == 3
    made.same_as_peft(base, adapter, tmp_path / "merged", torch.float32)


def test_orientation_is_the_modules_own(made: Any, tmp_path: Path, base: Path, adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", fan_in_fan_out=True)  # which PEFT ignores for a linear layer
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    made.same_as_peft(base, adapter, tmp_path / "merged", torch.float32)


def test_only_targeted_bytes_differ(made: Any, tmp_path: Path, base: Path) -> None:
    adapter = made.adapter(tmp_path / "adapter", base, target_modules=["v_proj"])
    report = merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    before, after = ((folder / "model.safetensors").read_bytes() for folder in (base, tmp_path / "merged"))
    length = 8 + int.from_bytes(before[:8], "little")
    header = json.loads(before[8:length])
    assert after[:length] == before[:length] and len(after) == len(before)
    changed = {
        name
        for name, entry in header.items()
        if name != "__metadata__"
        and before[slice(*(length + o for o in entry["data_offsets"]))]
        != after[slice(*(length + o for o in entry["data_offsets"]))]
    }
    assert changed == {f"model.layers.{layer}.self_attn.v_proj.weight" for layer in (0, 1)}
    assert report.modules_merged == 2
    assert report.tensors_copied == len(header) - 1 - 2


def test_companion_files_are_copied_and_code_is_not(tmp_path: Path, base: Path, adapter: Path) -> None:
    (base / "model.safetensors.index.json").write_text("{}")  # unused beside a single file, so it stays behind
    (base / "adapter_config.json").write_text("{}")  # would make transformers look for an adapter
    (base / "rankloom.json").write_text("{}")  # of the promotion that the base came from
    for name in ("LICENSE", "LICENCE.md", "NOTICE"):
        (base / name).write_text("terms")
    (base / "empty.txt").touch()
    report = merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    copied = {"config.json", "generation_config.json", "chat_template.jinja", "tokenizer.json", "empty.txt"}
    copied |= {"LICENSE", "LICENCE.md", "NOTICE"}
    assert report.output_sha256 == folder_sha256(
        {path.name: file_sha256(path) for path in (tmp_path / "merged").iterdir()}
    )
    assert {path.name for path in (tmp_path / "merged").iterdir()} == copied | {"model.safetensors"}
    for name in copied:
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()


def test_every_chat_template_goes_along(made: Any, tmp_path: Path, tiny_model: Path) -> None:
    base = shutil.copytree(tiny_model, tmp_path / "base")
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    templates = {"default": "{{ messages }}", "tool_use": "{{ tools }}"}
    tokenizer.chat_template = templates
    tokenizer.save_pretrained(base)
    assert (base / "additional_chat_templates" / "tool_use.jinja").is_file()
    adapter = made.adapter(tmp_path / "adapter", base)
    report = merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "merged").chat_template == templates
    size = sum(path.stat().st_size for path in (tmp_path / "merged").rglob("*") if path.is_file())
    assert report.bytes_written == size


def test_report_and_progress(tmp_path: Path, base: Path, adapter: Path) -> None:
    calls: list[tuple[int, int]] = []
    report = merge_adapter(
        adapter=adapter, base=base, output=tmp_path / "merged", progress=lambda *call: calls.append(call)
    )
    merged = tmp_path / "merged"
    size = sum(path.stat().st_size for path in merged.iterdir())
    assert report.bytes_written == size
    assert calls[-1] == (size, size) and calls == sorted(calls)
    printed = subprocess.run(
        "sha256sum * | sha256sum", shell=True, cwd=merged, env=os.environ | {"LC_ALL": "C"}, capture_output=True
    )
    assert report.output_sha256 == printed.stdout.decode().split()[0]
    again = merge_adapter(adapter=adapter, base=base, output=tmp_path / "again")
    assert again.output_sha256 == report.output_sha256


def test_pattern_rule_is_that_of_peft() -> None:
    module = "model.layers.1.self_attn.q_proj"
    for patterns in (
        {"proj": 1, "q_proj": 2},
        {"self_attn.q_proj": 1},
        {"attn.q_proj": 1},
        {r"layers\.\d\..*": 1},
        {"^model.layers.1.self_attn.q_proj": 1},
        {"^layers.*": 1},
        {".*v_proj|.*q_proj": 1, "q_proj": 2},
    ):
        lora = Lora.model_validate({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "rank_pattern": patterns})
        assert lora.rank(module) == patterns.get(get_pattern_key(list(patterns), module), 4)


def edit_adapter(adapter: Path, change: Callable[[dict[str, torch.Tensor], str], object]) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors, min(name for name in tensors if ".lora_B." in name))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, path)


def edit_json(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def with_config(**fields: Any) -> Callable[[Path, Path], None]:
    return lambda base, adapter: edit_json(adapter / "adapter_config.json", **fields)


def with_tensors(change: Callable[[dict[str, torch.Tensor], str], object]) -> Callable[[Path, Path], None]:
    return lambda base, adapter: edit_adapter(adapter, change)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


REFUSALS: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "DoRA without lengths": (with_config(use_dora=True), "use_dora is True"),
    "saved modules that are missing": (with_config(modules_to_save=["lm_head"]), "modules_to_save names 'lm_head'"),
    "bias": (with_config(bias="lora_only"), "bias='lora_only'"),
    "lora bias": (with_config(lora_bias=True), "lora_bias=True"),
    "tokens": (with_config(trainable_token_indices=[1]), "trainable_token_indices="),
    "replication": (with_config(layer_replication=[[0, 2]]), "layer_replication="),
    **{
        f"changed base, {init}": (with_config(init_lora_weights=init), f"init_lora_weights='{init}'")
        for init in ("pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica")
    },
    "activated LoRA": (with_config(alora_invocation_tokens=[1]), "alora_invocation_tokens="),
    "a field from the future": (with_config(use_xlora=True), "use_xlora=True"),
    "another method": (with_config(peft_type="LOHA"), "peft_type='LOHA'"),
    "broken pattern": (with_config(rank_pattern={"(": 2}), "rank_pattern"),
    "rank": (with_config(r=5), "r=5"),
    "no config": (lambda base, adapter: (adapter / "adapter_config.json").unlink(), "must have adapter_config.json"),
    "truncated adapter": (
        lambda base, adapter: truncate(adapter / "adapter_model.safetensors"),
        "whole safetensors file",
    ),
    "no adapter": (lambda base, adapter: (adapter / "adapter_model.safetensors").unlink(), "adapter_model.safetensors"),
    "NaN": (with_tensors(lambda t, b: t[b].view(-1)[3:4].fill_(float("nan"))), "must be finite, but base_model.model."),
    "Inf": (with_tensors(lambda t, b: t[b].view(-1)[3:4].fill_(float("inf"))), "must be finite, but base_model.model."),
    "integers": (
        with_tensors(lambda t, b: t.update({b: t[b].to(torch.int8)})),
        "must be floating-point, but base_model",
    ),
    "overflow": (with_tensors(lambda t, b: t[b].fill_(3e38)), "once merged"),
    "lone A": (with_tensors(lambda t, b: t.pop(b)), "lora_B.weight is missing"),
    "lone B": (with_tensors(lambda t, b: t.pop(b.replace("lora_B", "lora_A"))), "lora_A.weight is missing"),
    "shape": (with_tensors(lambda t, b: t.update({b: t[b][:-1].clone()})), "lora_B (out, r)"),
    "empty": (with_tensors(lambda t, b: t.clear()), "at least one lora_A"),
    "lengths without DoRA": (
        with_tensors(lambda t, b: t.update({b.replace("lora_B.weight", "lora_magnitude_vector"): t[b]})),
        "use_dora is False",
    ),
    "lengths twice": (
        with_tensors(
            lambda t, b: t.update(
                {b.replace("B.weight", end): t[b] for end in ("magnitude_vector", "magnitude_vector.weight")}
            )
        ),
        "each part once",
    ),
    "a module nobody saved": (
        with_tensors(lambda t, b: t.update({"base_model.model.lm_head.weight": t[b]})),
        "tensor='base_model.model.lm_head.weight'",
    ),
    "embedding": (with_tensors(lambda t, b: t.update({"x.lora_embedding_A": t[b]})), "x.lora_embedding_A"),
    "unknown module": (
        with_tensors(lambda t, b: t.update({k.replace("layers.0", "layers.7"): v for k, v in t.items()})),
        "model.layers.7.",
    ),
    "another prefix": (
        with_tensors(
            lambda t, b: t.update({k.replace("base_model.model.", "base_model.model.x."): v for k, v in t.items()})
        ),
        "not x.model.layers.0",
    ),
    "quantized base": (
        lambda base, adapter: edit_json(base / "config.json", quantization_config={"load_in_4bit": True}),
        "quantization_config",
    ),
    "integer base": (
        lambda base, adapter: save_file(
            {k: v.to(torch.int8) for k, v in load_file(base / "model.safetensors").items()}, base / "model.safetensors"
        ),
        "is I8",
    ),
    "no weights": (lambda base, adapter: (base / "model.safetensors").unlink(), "model.safetensors.index.json"),
    "no base config": (lambda base, adapter: (base / "config.json").unlink(), "must have a config.json"),
    "truncated base": (lambda base, adapter: truncate(base / "model.safetensors"), "not a sound .safetensors file"),
}


@pytest.mark.parametrize(("breakage", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refusals_leave_nothing_behind(
    tmp_path: Path, base: Path, adapter: Path, breakage: Callable[[Path, Path], object], message: str
) -> None:
    breakage(base, adapter)
    with pytest.raises(MergeError) as caught:
        merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    assert message in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"base", "adapter"}
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_head_that_is_tied_is_refused(made: Any, tmp_path: Path, base: Path) -> None:
    adapter = made.adapter(tmp_path / "adapter", base, target_modules=["lm_head"])
    edit_json(base / "config.json", tie_word_embeddings=True)
    with pytest.raises(MergeError, match="tie_word_embeddings"):
        merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")


@pytest.mark.parametrize("shard", ["../base/model-00001-of-00002.safetensors", "weights.bin"])
def test_shard_names_stay_in_the_base(made: Any, tmp_path: Path, adapter: Path, shard: str) -> None:
    base = made.base(tmp_path / "sharded", max_shard_size="40KB")
    index = json.loads((base / "model.safetensors.index.json").read_text())
    edit_json(base / "model.safetensors.index.json", weight_map=index["weight_map"] | {"lm_head.weight": shard})
    with pytest.raises(MergeError, match=r"its index names|outside its folder"):
        merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")


def test_index_must_agree_with_its_shards(made: Any, tmp_path: Path, adapter: Path) -> None:
    base = made.base(tmp_path / "sharded", max_shard_size="40KB")
    index = json.loads((base / "model.safetensors.index.json").read_text())
    wrong = {"lm_head.weight": index["weight_map"]["model.norm.weight"]}
    edit_json(base / "model.safetensors.index.json", weight_map=index["weight_map"] | wrong)
    with pytest.raises(MergeError, match="wrong on lm_head"):
        merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")


def test_existing_output_is_kept(tmp_path: Path, base: Path, adapter: Path) -> None:
    output = tmp_path / "merged"
    output.mkdir()
    merge_adapter(adapter=adapter, base=base, output=output)  # an empty folder is as good as none
    kept = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    with pytest.raises(MergeError, match=f"{output}; name another"):
        merge_adapter(adapter=adapter, base=base, output=output)
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == kept


@pytest.mark.parametrize("small_disk", ["32k"], indirect=True)
def test_full_disk_is_refused_first(small_disk: Path, base: Path, adapter: Path) -> None:
    with pytest.raises(MergeError, match=r"needs [\d,]+ bytes, but .* has [\d,]+ free"):
        merge_adapter(adapter=adapter, base=base, output=small_disk / "merged")
    assert list(small_disk.iterdir()) == []
    with pytest.raises(MergeError, match="is a mount point"):
        merge_adapter(adapter=adapter, base=base, output=small_disk)


def test_transformers_reads_the_output_offline(tmp_path: Path, base: Path, adapter: Path) -> None:
    merge_adapter(adapter=adapter, base=base, output=tmp_path / "merged")
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "merged", local_files_only=True, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert model(torch.arange(8)[None]).logits.isfinite().all()
