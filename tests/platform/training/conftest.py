from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, load_from_disk
from safetensors.torch import load_file

from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.hush import hush
from rankloom.training.exchange import LocalExchange, Outcome, TrialSpec
from rankloom.training.packed.engine import PackedEngine
from rankloom.training.resident import ResidentBase, load_resident_base
from rankloom.training.trl import TrlEngine

TRAINING = TrainingConfig(max_steps=4, eval_steps=2, max_length=48)
PARAMS: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 8,
    "use_rslora": False,
    "lora_dropout": 0.1,
    "learning_rate": 1e-2,
    "target_modules": "all-linear",
    "seed": 7,
}


@pytest.fixture(scope="session", autouse=True)
def _quiet() -> None:
    hush()


@pytest.fixture(scope="session")
def rows(tiny_model: Path, rows_file: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """Tokenised rows to train on, and held-out ones."""
    from rankloom.data import prepare_data
    from rankloom.models import load_tokenizer

    folder = tmp_path_factory.mktemp("data")
    prepare_data(
        dataset=rows_file,
        eval_dataset=None,
        eval_fraction=0.2,
        max_eval_samples=None,
        seed=0,
        tokenizer=load_tokenizer(tiny_model),
        max_length=48,
        completion_only_loss=None,
        folder=folder,
    )
    return load_from_disk(str(folder / "train")), load_from_disk(str(folder / "eval"))


@pytest.fixture(scope="session")
def gpt2(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GPT-2 of two layers, whose linear layers are Conv1D and have biases; the tokenizer is the tiny Llama's."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config

    folder = tmp_path_factory.mktemp("tiny-gpt2")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=64,
        n_layer=2,
        n_head=4,
        n_positions=64,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = AutoModelForCausalLM.from_config(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):  # of zeros, a change of dtype or a lost bias would show nothing
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def resident(tiny_model: Path) -> ResidentBase:
    """The tiny Llama in NF4."""
    return load_resident_base(tiny_model, QuantizationConfig(), TRAINING)


@pytest.fixture
def resident_fp32(tiny_model: Path) -> ResidentBase:
    """The tiny Llama in NF4, whose products are in float32."""
    return load_resident_base(tiny_model, QuantizationConfig(bnb_4bit_compute_dtype="float32"), TRAINING)


@pytest.fixture
def trial() -> Callable[..., TrialSpec]:
    """Makes a trial; keyword arguments change its configuration."""

    def make(trial_id: str = "trial", **changes: Any) -> TrialSpec:
        return TrialSpec(trial_id=trial_id, number=0, params={**PARAMS, **changes})

    return make


@pytest.fixture
def engine_of(rows: tuple[Dataset, Dataset], tmp_path: Path) -> Callable[..., TrlEngine]:
    """Makes an engine on a resident base."""

    def make(base: ResidentBase, training: TrainingConfig = TRAINING) -> TrlEngine:
        return TrlEngine(
            base=base, train_dataset=rows[0], eval_dataset=rows[1], training=training, adapters=tmp_path / "adapters"
        )

    return make


@pytest.fixture
def run_trials(engine_of: Callable[..., TrlEngine]) -> Callable[..., LocalExchange]:
    """Runs trials on a resident base, and returns what came of them."""

    def run(
        base: ResidentBase,
        *specs: TrialSpec,
        training: TrainingConfig = TRAINING,
        stop: dict[str, int] | None = None,
    ) -> LocalExchange:
        exchange = LocalExchange(list(specs), stop=stop)
        engine_of(base, training).run(exchange)
        return exchange

    return run


@pytest.fixture
def packed_engine(rows: tuple[Dataset, Dataset], tmp_path: Path) -> Callable[..., PackedEngine]:
    """Makes a packed engine on a resident base, each with a folder of its own for adapters."""
    made = itertools.count()

    def make(base: ResidentBase, *, training: TrainingConfig = TRAINING, **options: Any) -> PackedEngine:
        return PackedEngine(
            base=base,
            train_dataset=rows[0],
            eval_dataset=rows[1],
            training=training,
            adapters=tmp_path / f"adapters-{next(made)}",
            **options,
        )

    return make


@pytest.fixture
def run_packed(packed_engine: Callable[..., PackedEngine]) -> Callable[..., LocalExchange]:
    """Runs trials in slots of a resident base, and returns what came of them."""

    def run(
        base: ResidentBase,
        *specs: TrialSpec,
        stop: dict[str, int] | None = None,
        **options: Any,
    ) -> LocalExchange:
        exchange = LocalExchange(list(specs), stop=stop)
        packed_engine(base, **options).run(exchange)
        return exchange

    return run


@pytest.fixture(scope="session")
def ended_alike() -> Callable[[Outcome, Outcome], bool]:
    """Tells whether two trials ended with the same figures and, bit by bit, the same adapter."""

    def figures(outcome: Outcome) -> dict[str, Any]:
        return {name: value for name, value in outcome.metrics.items() if name not in ("wall_s", "peak_memory_bytes")}

    def tensors(outcome: Outcome) -> dict[str, torch.Tensor]:
        assert outcome.adapter is not None, outcome.message
        return dict(load_file(outcome.adapter / "adapter_model.safetensors"))

    def alike(left: Outcome, right: Outcome) -> bool:
        ours, theirs = tensors(left), tensors(right)
        return (
            (left.status, figures(left)) == (right.status, figures(right))
            and ours.keys() == theirs.keys()
            and all(torch.equal(ours[name], theirs[name]) for name in ours)
        )

    return alike


@pytest.fixture
def family(tiny_model: Path, tmp_path: Path) -> Callable[..., ResidentBase]:
    """Loads a tiny model of any architecture, of random weights so large that attention tells in the loss."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    sizes = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "vocab_size": len(tokenizer),
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }

    def load(model_type: str, quantization: QuantizationConfig, **changes: Any) -> ResidentBase:
        folder = tmp_path / model_type
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **{**sizes, **changes}))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8 if parameter.ndim > 1 else 1)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return load_resident_base(folder, quantization, TRAINING)

    return load
