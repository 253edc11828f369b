"""The base that stays: loaded once, quantized, proven untouched at the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from blake3 import blake3

from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.errors import ModelError, TrainingError
from rankloom.models import load_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUANTIZED_CLASSES = ("Linear4bit", "Linear8bitLt")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResidentBase:
    """A frozen base in memory, and what was measured when it was loaded.

    Attributes:
        model: The quantized model; adapters are injected into it and taken out again.
        tokenizer: Its tokenizer.
        path: The folder it came from.
        leaf_modules: Qualified names of leaf modules to class names, before any adapter.
        compute_dtype: dtype of matrix products; bfloat16 and float16 run under autocast.
        checksum: `base_checksum` right after loading.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    path: Path
    leaf_modules: dict[str, str]
    compute_dtype: torch.dtype
    checksum: str

    def assert_unchanged(self) -> None:
        """Raise unless every tensor of the base is bit-identical to what was loaded.

        Raises:
            TrainingError: Some tensor, or the set of tensors, differs.
        """
        if base_checksum(self.model) != self.checksum:
            raise TrainingError(
                f"the resident base of {self.path} changed during training: results of this lane cannot be trusted; "
                "please report it with the search's configuration"
            )


def training_device() -> torch.device:
    """Return the CUDA device of this process, else the CPU."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def compute_dtype_for(name: str, device: torch.device) -> torch.dtype:
    """Resolve a compute dtype; 'auto' is bfloat16 where the hardware multiplies in it, else float32.

    Args:
        name: 'auto' or a torch dtype's name.
        device: Where the model runs.
    """
    if name != "auto":
        dtype: torch.dtype = getattr(torch, name)
        return dtype
    has_bf16 = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if has_bf16 else torch.float32


def load_resident_base(
    path: Path, quantization: QuantizationConfig, training: TrainingConfig, device: torch.device | None = None
) -> ResidentBase:
    """Load, quantize and freeze a base, and check that it is what the search asked for.

    Args:
        path: Folder with full-precision safetensors.
        quantization: How to quantize.
        training: Only `gradient_checkpointing` is read.
        device: Where to put it; by default the process's CUDA device, else the CPU.

    Returns:
        The base, ready for adapters (`prepare_model_for_kbit_training` applied; QLoRA, arXiv:2305.14314).

    Raises:
        ModelError: The folder cannot be loaded as a causal language model.
        TrainingError: The loaded base is not quantized as asked.
    """
    from peft import prepare_model_for_kbit_training

    device = device or training_device()
    dtype = compute_dtype_for(quantization.bnb_4bit_compute_dtype, device)
    model = load_quantized(path, quantization, dtype=dtype, compute_dtype=dtype, device=device)
    leaves = {name: type(module).__name__ for name, module in model.named_modules() if not any(module.children())}
    keep_gradients_after_evaluation(model)
    model = prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=uses_gradient_checkpointing(training, device),
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    model.config.use_cache = False
    model.requires_grad_(False)
    switch_dropout_off(model)
    return ResidentBase(
        model=model,
        tokenizer=load_tokenizer(path),
        path=path,
        leaf_modules=leaves,
        compute_dtype=dtype,
        checksum=base_checksum(model),
    )


def load_quantized(
    path: Path,
    quantization: QuantizationConfig,
    *,
    dtype: torch.dtype,
    compute_dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """Load a model with bitsandbytes quantizing it on the way, and check that it did.

    Args:
        path: Folder with full-precision safetensors.
        quantization: How to quantize.
        dtype: Of what is not quantized.
        compute_dtype: Of matrix products with what is.
        device: Where to put it.

    Raises:
        ModelError: The folder cannot be loaded as a causal language model.
        TrainingError: The loaded model is not quantized as asked.
    """
    from transformers import AutoModelForCausalLM

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            quantization_config=bitsandbytes_config(quantization, compute_dtype),
            device_map={"": device},
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load {path} as a causal language model: {error}") from error
    assert_quantized(model, quantization, compute_dtype)
    return model


def bitsandbytes_config(quantization: QuantizationConfig, compute_dtype: torch.dtype) -> Any:
    """Build transformers' `BitsAndBytesConfig`, or None for an unquantized base."""
    from transformers import BitsAndBytesConfig

    if quantization.load_in_4bit:
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization.bnb_4bit_quant_type,
            bnb_4bit_use_double_quant=quantization.bnb_4bit_use_double_quant,
            bnb_4bit_compute_dtype=compute_dtype,
        )
    return BitsAndBytesConfig(load_in_8bit=True) if quantization.load_in_8bit else None


def uses_gradient_checkpointing(training: TrainingConfig, device: torch.device) -> bool:
    """Return the setting, or on for CUDA and off for the CPU where it is unset."""
    return device.type == "cuda" if training.gradient_checkpointing is None else training.gradient_checkpointing


def keep_gradients_after_evaluation(model: torch.nn.Module) -> None:
    """Turn off bitsandbytes' AVX512-BF16 repacking of 4-bit weights.

    bitsandbytes 0.50 repacks every `Linear4bit` in the first no-grad forward in eval mode on such a CPU, `.train()`
    does not undo it, and from then on the gradient through the base is wrong, with the loss almost unchanged.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010


def switch_dropout_off(model: torch.nn.Module) -> None:
    """Turn off the base's own dropout (GPT-2's is 0.1): it is frozen, and `lora_dropout` is what a search varies.

    Its masks come from one generator for all trials, so a trial's result would hang on what was trained beside it.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        # Models that call dropout as a function keep its probability under such names (OPT, Llama's attention).
        for name, value in vars(module).items():
            if isinstance(value, float) and (name.endswith("dropout") or name.endswith("pdrop")):
                setattr(module, name, 0.0)


def assert_quantized(model: torch.nn.Module, quantization: QuantizationConfig, dtype: torch.dtype) -> None:
    """Raise unless the base's linear layers really hold the 4-bit (or 8-bit) data that was asked for.

    Args:
        model: The loaded base.
        quantization: What was asked for.
        dtype: The compute dtype that training runs in.

    Raises:
        TrainingError: No layer is quantized, or one differs in data type, double quantization or compute dtype.
    """
    quantized = [(name, module) for name, module in model.named_modules() if type(module).__name__ in QUANTIZED_CLASSES]
    wanted = "Linear4bit" if quantization.load_in_4bit else "Linear8bitLt" if quantization.load_in_8bit else None
    if wanted is None:
        if quantized:
            raise TrainingError(f"the base should be unquantized, but {quantized[0][0]} is {type(quantized[0][1])}")
        return
    if not quantized:
        raise TrainingError(f"the base should hold {wanted} layers, but none is: this architecture cannot be quantized")
    for name, module in quantized:
        if type(module).__name__ != wanted:
            raise TrainingError(f"{name} should be {wanted}, got {type(module).__name__}")
        if wanted == "Linear4bit":
            _assert_4bit(name, module, quantization, dtype)


def _assert_4bit(name: str, module: Any, quantization: QuantizationConfig, dtype: torch.dtype) -> None:
    state = module.weight.quant_state
    found = {
        "bnb_4bit_quant_type": state.quant_type if state is not None else None,
        "bnb_4bit_use_double_quant": bool(state is not None and state.nested),
        "bnb_4bit_compute_dtype": module.compute_dtype,
    }
    asked = {
        "bnb_4bit_quant_type": quantization.bnb_4bit_quant_type,
        "bnb_4bit_use_double_quant": quantization.bnb_4bit_use_double_quant,
        "bnb_4bit_compute_dtype": dtype,
    }
    for key, value in asked.items():
        if found[key] != value:
            raise TrainingError(f"{name}: {key} should be {value}, the loaded base has {found[key]}")


def base_checksum(model: torch.nn.Module) -> str:
    """Return a BLAKE3 hash over the names and values of all tensors of the base, quantization constants included."""
    digest = blake3()
    tensors: dict[str, torch.Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, parameter in model.named_parameters():
        if (state := getattr(parameter, "quant_state", None)) is not None:
            tensors |= {f"{name}.{key}": value for key, value in state.as_dict(packed=True).items()}
    for name in sorted(tensors):
        if "lora_" in name:
            continue
        tensor = tensors[name].detach()
        # bitsandbytes turns a bias into the dtype of its layer's input; in fp32, equal bits are still equal values.
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor = tensor.float()
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            data = tensor.contiguous().reshape(-1).view(torch.uint8).cpu().numpy()
            digest.update(data)  # type: ignore[arg-type]  # an array is a buffer
    return digest.hexdigest()
