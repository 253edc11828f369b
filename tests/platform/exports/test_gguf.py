from __future__ import annotations

import json
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from rankloom.errors import MergeError, ModelError
from rankloom.exports.gguf import GGUF_TYPES, export_gguf, export_gguf_lora
from rankloom.exports.gguf_parity import compare, say, write_in_f32
from rankloom.exports.gguf_runtime import GgufModel

gguf = pytest.importorskip("gguf")
pytest.importorskip("auto_round", reason="the extra 'gguf' is not installed")
pytest.importorskip("xllamacpp", reason="the extra 'gguf' is not installed")

# The words that the tiny tokenizer was made from, and what it was not: accents, other scripts, white space, marks.
TEXTS = [
    "negate : the girl has loved flowers = the girl has not loved flowers",
    "the doctor  has\n\nloved\ttheory ; it's 1234 pianos, isn't it?",
    "un élève naïf — 数学 Привет 🦙 <|im_start|>user",
]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """The tiny model with an output that is sure of something: as it was initialized, all tokens are about even."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path_factory.mktemp("gguf") / "tiny")
    weights = load_file(folder / "model.safetensors")
    torch.manual_seed(1)
    bolder = {name: value * 8 if value.ndim == 2 else value for name, value in weights.items()}
    save_file(bolder, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Callable[[str], Path]:
    """Exports the model as a type, once, and writes down beside it what was told of the progress."""
    folder = tmp_path_factory.mktemp("exported")

    def export(type: str) -> Path:
        file = folder / f"tiny-{type}.gguf"
        if not file.exists():
            told: list[tuple[int, int]] = []
            export_gguf(model, file, type=type, progress=lambda done, total: told.append((done, total)))
            file.with_suffix(".json").write_text(json.dumps(told))
        return file

    return export


def transformers_model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def tokenizer_of(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


def stored_weights(file: Path) -> dict[str, np.ndarray]:
    tensors = gguf.GGUFReader(file).tensors
    return {tensor.name: gguf.quants.dequantize(tensor.data, tensor.tensor_type) for tensor in tensors}


def test_a_file_in_f32_says_what_the_model_says(model: Path, exported: Callable[[str], Path]) -> None:
    tokenizer = tokenizer_of(model)
    loaded = transformers_model(model)
    running = GgufModel(exported("f32"))
    parity = compare(say(loaded, tokenizer, TEXTS), running)
    assert parity.clear > 0.9 * parity.positions > 50
    assert parity.same_top1_clear == 1.0
    assert parity.max_delta < 1e-3
    assert parity.differing_texts == ()

    prompt = tokenizer(TEXTS[0], return_tensors="pt")
    answer = loaded.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert running.generate(TEXTS[0], max_tokens=8) == tokenizer.decode(answer, skip_special_tokens=True)


def test_another_model_is_told_apart(tiny_model: Path, exported: Callable[[str], Path]) -> None:
    said = say(transformers_model(tiny_model), tokenizer_of(tiny_model), TEXTS)
    parity = compare(said, GgufModel(exported("f32")))
    assert parity.same_top1 < 0.5 and parity.mean_delta > 0.5


def test_the_tokenizer_and_the_chat_template_come_along(model: Path, exported: Callable[[str], Path]) -> None:
    fields = gguf.GGUFReader(exported("f32")).fields
    assert fields["tokenizer.chat_template"].contents() == tokenizer_of(model).chat_template
    assert fields["tokenizer.ggml.eos_token_id"].contents() == tokenizer_of(model).eos_token_id
    assert fields["general.name"].contents() == "tiny-f32"


@pytest.mark.slow
def test_every_type_keeps_what_its_bits_can_hold(exported: Callable[[str], Path]) -> None:
    exact = stored_weights(exported("f32"))
    sizes = {type: exported(type).stat().st_size for type in GGUF_TYPES}
    assert sorted(sizes, key=sizes.__getitem__, reverse=True) in (
        ["f32", "bf16", "f16", "q8_0", "q5_1", "q4_1"],
        ["f32", "f16", "bf16", "q8_0", "q5_1", "q4_1"],
    )
    # Half a step of the coarsest block, as a share of the weights' spread: 2⁻⁸, 2⁻⁵ and 2⁻⁴, and what they amount to.
    allowed = {"f32": 0.0, "bf16": 0.0, "f16": 1e-3, "q8_0": 0.008, "q5_1": 0.06, "q4_1": 0.11}
    for type, bound in allowed.items():
        stored = stored_weights(exported(type))
        assert stored.keys() == exact.keys()
        for name, weight in stored.items():
            assert np.linalg.norm(weight - exact[name]) <= bound * np.linalg.norm(exact[name]), (type, name)


@pytest.mark.slow
@pytest.mark.parametrize("type", ["bf16", "q8_0"])
def test_a_file_written_in_f32_holds_the_same(tmp_path: Path, exported: Callable[[str], Path], type: str) -> None:
    write_in_f32(exported(type), tmp_path / "exact.gguf")
    before, after = gguf.GGUFReader(exported(type)), gguf.GGUFReader(tmp_path / "exact.gguf")
    assert {tensor.tensor_type for tensor in after.tensors} == {gguf.GGMLQuantizationType.F32}
    exact = stored_weights(tmp_path / "exact.gguf")
    for name, weight in stored_weights(exported(type)).items():
        assert np.array_equal(weight, exact.pop(name)), name
    assert not exact
    said = [{name: field.contents() for name, field in reader.fields.items()} for reader in (before, after)]
    assert said[0] == said[1]
    assert GgufModel(tmp_path / "exact.gguf").generate(TEXTS[0], max_tokens=4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("type", "delta"), [("bf16", 0.05), ("f16", 0.01), ("q8_0", 0.1), ("q5_1", 0.6), ("q4_1", 1.0)]
)
def test_every_type_generates(model: Path, exported: Callable[[str], Path], type: str, delta: float) -> None:
    running = GgufModel(exported(type))
    parity = compare(say(transformers_model(model), tokenizer_of(model), TEXTS), running)
    assert parity.mean_delta < delta
    assert running.generate(TEXTS[0], max_tokens=4)


def write_adapter(folder: Path, base: Path, **config: Any) -> Any:
    """Save a LoRA with random values, and return the model with it, in fp32."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(2)
    values = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(transformers_model(base), LoraConfig(**values))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(folder)
    return model.eval()


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(
            {
                "use_rslora": True,
                "rank_pattern": {"q_proj": 8, "layers.1.mlp.down_proj": 2},
                "alpha_pattern": {"k_proj": 32, "up_proj": 1},
            },
            id="rslora-and-patterns",
        ),
        pytest.param({}, id="plain", marks=pytest.mark.slow),
        pytest.param({"alpha_pattern": {"q_proj": 64}}, id="alpha-pattern", marks=pytest.mark.slow),
        pytest.param({"rank_pattern": {"q_proj": 1}}, id="rank-pattern", marks=pytest.mark.slow),
    ],
)
def test_a_lora_says_what_peft_says(
    tmp_path: Path, model: Path, exported: Callable[[str], Path], config: dict[str, Any]
) -> None:
    with_adapter = write_adapter(tmp_path / "adapter", model, **config)
    export_gguf_lora(tmp_path / "adapter", model, tmp_path / "lora.gguf", type="f32")
    tokenizer = tokenizer_of(model)
    said = say(with_adapter, tokenizer, TEXTS)

    parity = compare(said, GgufModel(exported("f32"), adapter=tmp_path / "lora.gguf"))
    assert parity.same_top1_clear == 1.0 and parity.max_delta < 2e-3
    # The adapter is what makes the difference.
    alone = compare(said, GgufModel(exported("f32")))
    assert alone.mean_delta > 100 * parity.mean_delta
    assert [file.name for file in tmp_path.glob("*.gguf*")] == ["lora.gguf"]


@pytest.mark.slow
def test_a_lora_of_a_deep_model(tmp_path: Path, model: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    deep = shutil.copytree(model, tmp_path / "deep")
    config = AutoConfig.from_pretrained(model, num_hidden_layers=80)  # as the models of 70 billion parameters
    AutoModelForCausalLM.from_config(config).save_pretrained(deep)
    write_adapter(tmp_path / "adapter", deep)
    export_gguf_lora(tmp_path / "adapter", deep, tmp_path / "lora.gguf")
    assert len(gguf.GGUFReader(tmp_path / "lora.gguf").tensors) == 2 * 7 * 80


@pytest.mark.slow
def test_a_lora_that_f16_cannot_hold_is_refused(tmp_path: Path, model: Path) -> None:
    from safetensors.torch import load_file, save_file

    write_adapter(tmp_path / "adapter", model)
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    name = next(name for name in weights if "lora_B" in name)
    weights[name][0, 0] = 40_000.0  # the factor is 2
    save_file(weights, tmp_path / "adapter" / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=f"{re.escape(name)} times its factor is too large for f16; store it as f32"):
        export_gguf_lora(tmp_path / "adapter", model, tmp_path / "lora.gguf", type="f16")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    export_gguf_lora(tmp_path / "adapter", model, tmp_path / "lora.gguf", type="bf16")


@pytest.mark.slow
def test_a_lora_of_gpt2_whose_weights_lie_the_other_way_round(tmp_path: Path, model: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    base = shutil.copytree(model, tmp_path / "gpt2")
    (base / "model.safetensors").unlink()
    torch.manual_seed(0)
    vocabulary = json.loads((model / "config.json").read_bytes())["vocab_size"]
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 128, "vocab_size": vocabulary}
    gpt2 = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=None, eos_token_id=2, initializer_range=0.3))
    gpt2.save_pretrained(base)
    # As in the files of the published models, which the converter reads.
    config = json.loads((base / "config.json").read_bytes())
    (base / "config.json").write_text(json.dumps({**config, "n_ctx": 128}))
    with_adapter = write_adapter(tmp_path / "adapter", base, target_modules=["c_attn", "c_proj"], fan_in_fan_out=True)
    export_gguf(base, tmp_path / "base.gguf", type="f32")
    export_gguf_lora(tmp_path / "adapter", base, tmp_path / "lora.gguf", type="f32")
    said = say(with_adapter, tokenizer_of(base), TEXTS[:1])
    parity = compare(said, GgufModel(tmp_path / "base.gguf", adapter=tmp_path / "lora.gguf", n_ctx=128))
    assert parity.same_top1_clear == 1.0 and parity.max_delta < 5e-3


def test_an_unknown_architecture_is_named_and_leaves_nothing(tmp_path: Path, model: Path) -> None:
    strange = shutil.copytree(model, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_bytes())
    (strange / "config.json").write_text(json.dumps({**config, "architectures": ["StrangeForCausalLM"]}))
    with pytest.raises(ModelError, match="know the model's architecture, but .* has StrangeForCausalLM"):
        export_gguf(strange, tmp_path / "strange.gguf", type="f32")
    assert [path.name for path in tmp_path.iterdir()] == ["strange"]


@pytest.mark.slow
def test_an_unknown_tokenizer_is_refused(tmp_path: Path, model: Path) -> None:
    strange = shutil.copytree(model, tmp_path / "strange")
    tokenizer = json.loads((strange / "tokenizer.json").read_bytes())
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    (strange / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="must know how the tokenizer splits text"):
        export_gguf(strange, tmp_path / "strange.gguf", type="f32")


@pytest.mark.slow
def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path, model: Path) -> None:
    strange = shutil.copytree(model, tmp_path / "strange")
    config = json.loads((strange / "config.json").read_bytes())
    (strange / "config.json").write_text(json.dumps({**config, "architectures": ["DreamModel"]}))
    config = json.loads((strange / "tokenizer_config.json").read_bytes())
    auto_map = {"AutoTokenizer": ["own.OwnTokenizer", None]}
    (strange / "tokenizer_config.json").write_text(
        json.dumps({**config, "tokenizer_class": "OwnTokenizer", "auto_map": auto_map})
    )
    (strange / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass OwnTokenizer: pass\n")
    with pytest.raises(ModelError, match="converter failed"):
        export_gguf(strange, tmp_path / "strange.gguf", type="f32")
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_crash_of_the_converter_is_one_message(tmp_path: Path, model: Path) -> None:
    torn = shutil.copytree(model, tmp_path / "torn")
    (torn / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="converter failed on .*torn: .*; is the model whole"):
        export_gguf(torn, tmp_path / "torn.gguf", type="f32")
    assert [path.name for path in tmp_path.iterdir()] == ["torn"]


def children(process: psutil.Process) -> list[psutil.Process]:
    """The converters that a process has started."""
    return [child for child in process.children() if any("gguf_worker" in part for part in child.cmdline())]


@pytest.mark.slow
def test_a_converter_that_is_killed_is_one_message(tmp_path: Path, model: Path) -> None:
    def kill() -> None:
        while not (found := children(psutil.Process())):
            time.sleep(0.05)
        found[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(ModelError, match="converter was ended by SIGKILL on .*; is there memory enough"):
        export_gguf(model, tmp_path / "out.gguf", type="f32")
    killer.join()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_converter_leaves_with_a_caller_that_is_killed(tmp_path: Path, model: Path) -> None:
    code = (
        "import sys, pathlib, rankloom.exports.gguf as g;"
        "g.export_gguf(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), type='f32')"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    caller = psutil.Popen([sys.executable, "-c", code, model, tmp_path / "out.gguf"], env=environment)
    while not (found := children(caller)):
        assert caller.poll() is None
        time.sleep(0.05)
    caller.kill()
    caller.wait()
    # It was still importing; had it gone on, there would be a file.
    assert psutil.wait_procs(found, timeout=60)[1] == []
    assert not list(tmp_path.rglob("*.gguf"))


def test_progress_ends_at_the_size_of_the_file(exported: Callable[[str], Path]) -> None:
    file = exported("f32")
    told = json.loads(file.with_suffix(".json").read_bytes())
    assert told[-1] == [file.stat().st_size] * 2
    assert all(done <= total for done, total in told)
    assert {path.suffix for path in file.parent.iterdir()} == {".gguf", ".json"}


def test_wrong_requests_are_refused_before_anything_starts(tmp_path: Path, model: Path) -> None:
    taken = tmp_path / "taken.gguf"
    taken.write_bytes(b"mine")
    with pytest.raises(ModelError, match="stored as f32, bf16, f16, q8_0, q5_1, q4_1, got 'q2_k'"):
        export_gguf(model, tmp_path / "out.gguf", type="q2_k")
    with pytest.raises(ModelError, match="stored as f32, bf16, f16, got 'q8_0'"):
        export_gguf_lora(tmp_path, model, tmp_path / "out.gguf", type="q8_0")
    with pytest.raises(ModelError, match=r"must be a new \.gguf file, got .*taken"):
        export_gguf(model, taken, type="f32")
    with pytest.raises(ModelError, match=r"must be a new \.gguf file, got .*out\.bin"):
        export_gguf(model, tmp_path / "out.bin", type="f32")
    assert taken.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [taken]


def test_a_quantized_model_is_refused(tmp_path: Path, model: Path) -> None:
    quantized = shutil.copytree(model, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_bytes())
    (quantized / "config.json").write_text(json.dumps({**config, "quantization_config": {"load_in_4bit": True}}))
    with pytest.raises(ModelError, match="no quantization_config"):
        export_gguf(quantized, tmp_path / "out.gguf", type="f32")


def test_an_adapter_that_cannot_be_said_is_refused(tmp_path: Path, model: Path) -> None:
    write_adapter(tmp_path / "adapter", model, use_dora=True)
    with pytest.raises(MergeError, match="llama.cpp takes plain LoRA"):
        export_gguf_lora(tmp_path / "adapter", model, tmp_path / "lora.gguf")


def test_the_missing_extra_is_named(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    found = importlib.util.find_spec
    hidden = {"auto_round", "xllamacpp"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in hidden else found(name))
    with pytest.raises(ModelError, match=r"auto_round: pip install 'rankloom\[gguf\]'"):
        export_gguf(model, tmp_path / "out.gguf", type="f32")
    with pytest.raises(ModelError, match=r"xllamacpp: pip install 'rankloom\[gguf\]'"):
        GgufModel(tmp_path / "out.gguf")


def test_a_torn_file_does_not_load(tmp_path: Path, exported: Callable[[str], Path]) -> None:
    torn = tmp_path / "torn.gguf"
    torn.write_bytes(exported("f32").read_bytes()[:5000])
    with pytest.raises(ModelError, match="cannot load .*torn"):
        GgufModel(torn)
    with pytest.raises(ModelError, match="no GGUF file at"):
        GgufModel(tmp_path / "gone.gguf")
