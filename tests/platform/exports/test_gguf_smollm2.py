from __future__ import annotations

import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankloom.docstrings import documented_functions
from rankloom.errors import ModelError
from rankloom.exports.gguf import export_gguf
from rankloom.exports.gguf_parity import ModelOnText, compare, say, write_in_f32
from rankloom.exports.gguf_runtime import GgufModel
from rankloom.models import load_tokenizer, resolve_base
from rankloom.quickstart import smollm2

pytest.importorskip("auto_round", reason="the extra 'gguf' is not installed")
pytest.importorskip("xllamacpp", reason="the extra 'gguf' is not installed")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SmolLM2-135M as Transformers' safetensors."""
    try:
        file = smollm2()
    except ModelError:
        pytest.skip("the quickstart's model is not installed")
    return resolve_base(str(file)).path


@pytest.fixture(scope="module")
def said(base: Path) -> list[ModelOnText]:
    """What the model says of ten docstrings in fp32."""
    from transformers import AutoModelForCausalLM

    rows = list(documented_functions(Path(sysconfig.get_paths()["stdlib"])))
    texts = [
        f"Python function: {signature}\nSummary: {summary}" for signature, summary in rows[:: len(rows) // 10][:10]
    ]
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype="float32")
    return say(model, load_tokenizer(base), texts)


@pytest.fixture(scope="module")
def exported(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports the model as a type, once."""
    folder = tmp_path_factory.mktemp("exported")

    def export(type: str) -> Path:
        file = folder / f"model-{type}.gguf"
        if not file.exists():
            export_gguf(base, file, type=type)
        return file

    return export


# The other types: tests of the tiny model, and benchmarks/gguf_parity.py. In fp32, every clear choice is the same. In
# bf16 llama.cpp rounds what it multiplies the weights with: two tokens that are as close as that noise, 0.014 nats in
# the mean, can change places.
@pytest.mark.parametrize(
    ("type", "texts", "clear", "agreement", "mean_delta"),
    [("f32", 10, 300, 1.0, 0.001), ("bf16", 4, 80, 0.98, 0.03)],  # bf16 takes the longest by far
)
def test_a_real_model(
    exported: Callable[[str], Path],
    said: list[ModelOnText],
    type: str,
    texts: int,
    clear: int,
    agreement: float,
    mean_delta: float,
) -> None:
    running = GgufModel(exported(type))
    parity = compare(said[:texts], running)
    assert parity.differing_texts == ()
    assert parity.clear > clear
    assert parity.same_top1_clear >= agreement
    assert parity.mean_delta < mean_delta
    assert parity.widest_difference < 3 * mean_delta
    assert len(running.generate("The capital of France is", max_tokens=8)) > 5


def test_the_weights_of_a_bf16_file_are_the_models(
    tmp_path: Path, exported: Callable[[str], Path], said: list[ModelOnText]
) -> None:
    write_in_f32(exported("bf16"), tmp_path / "model.gguf")
    parity = compare(said, GgufModel(tmp_path / "model.gguf"))
    assert parity.differing_texts == ()
    assert parity.clear > 300
    assert parity.same_top1_clear == 1.0
    assert parity.mean_delta < 0.001
