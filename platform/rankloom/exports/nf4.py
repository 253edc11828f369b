"""A merged model in 4 bits: what was merged in full precision, quantized once, and never the other way round."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankloom.config import QuantizationConfig
from rankloom.errors import MergeError, ModelError, PromotionError
from rankloom.merging.companions import companions
from rankloom.outputs import whole_folder
from rankloom_registry.errors import FingerprintError
from rankloom_registry.formats.checkpoint import Checkpoint, open_checkpoint
from rankloom_registry.formats.safetensors import DTYPES

CONFIG = "config.json"


def export_nf4(
    merged: Path, output: Path, quantization: QuantizationConfig, progress: Callable[[int, int], None] | None = None
) -> None:
    """Quantize a merged full-precision model to NF4 and save it, so that transformers loads it in 4 bits.

    Quantized are the layers that transformers has bitsandbytes quantize while it loads a model: the linear ones, but
    not the output head, and not experts that are one parameter. Tokenizer, chat template and generation config are
    copied byte for byte, and `config.json` is the merged model's with a `quantization_config`.

    Args:
        merged: Folder of the merged model in safetensors.
        output: Folder to make; it may exist only if it is empty.
        quantization: Data type, double quantization and compute dtype; 'auto' is the dtype of the merged weights.
        progress: Called with (steps done, 3): quantized, saved, copied.

    Raises:
        PromotionError: The quantization is not NF4, no layer can be quantized, or the output exists.
        MergeError: The model is quantized already.
        ModelError: It cannot be loaded.
    """
    if not quantization.load_in_4bit or quantization.bnb_4bit_quant_type != "nf4":
        raise PromotionError(
            f"an NF4 export needs load_in_4bit=True and bnb_4bit_quant_type='nf4', got {quantization.load_in_4bit} "
            f"and {quantization.bnb_4bit_quant_type!r}; give a QuantizationConfig with these"
        )
    checkpoint = _full_precision(merged)
    tell = progress or (lambda done, total: None)
    with whole_folder(output) as folder:
        model = _quantized(checkpoint, quantization)
        tell(1, 3)
        model.save_pretrained(folder)
        tell(2, 3)
        _write_config(folder, checkpoint)
        _copy_companions(merged, folder)
        tell(3, 3)


def refuse_quantized_base(folder: Path) -> None:
    """Raise if a model is quantized: nothing may be merged into it.

    Args:
        folder: A model's folder.

    Raises:
        MergeError: It is quantized, or holds no model in safetensors.
    """
    _full_precision(folder)


def _full_precision(folder: Path) -> Checkpoint:
    try:
        checkpoint = open_checkpoint(folder)
    except FingerprintError as error:
        raise MergeError(str(error)) from error
    method = (checkpoint.quantization or {}).get("quant_method")
    # bitsandbytes' own tensors tell it, even if someone took the configuration away.
    if method is None and any(".quant_state.bitsandbytes__" in name for name in checkpoint.tensors):
        method = "bitsandbytes"
    if method is not None or checkpoint.quantization:
        raise MergeError(
            f"only a full-precision model can be merged into or quantized, but {folder} is quantized already "
            f"({method or 'quantization_config'}): its rounding error was 31 times an adapter's update, so a "
            "merge inside 4 bits kept 2 to 17 % of what was learned; merge into the full-precision base, and "
            "quantize the result (--format nf4)"
        )
    return checkpoint


def _quantized(checkpoint: Checkpoint, quantization: QuantizationConfig) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    from rankloom.training.resident import assert_quantized, bitsandbytes_config, compute_dtype_for, training_device

    device = training_device()
    dtype = getattr(torch, _main_dtype(checkpoint))
    named = quantization.bnb_4bit_compute_dtype
    # Not what this machine multiplies in: the model is served elsewhere.
    compute_dtype = dtype if named == "auto" else compute_dtype_for(named, device)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            checkpoint.folder,
            dtype=dtype,
            quantization_config=bitsandbytes_config(quantization, compute_dtype),
            device_map={"": device},
            local_files_only=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot load {checkpoint.folder} as a causal language model: {error}") from error
    if not any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        raise PromotionError(
            f"{checkpoint.folder} has no layer that bitsandbytes quantizes ({type(model).__name__}); "
            "export it as safetensors"
        )
    assert_quantized(model, quantization, compute_dtype)
    return model


def _main_dtype(checkpoint: Checkpoint) -> str:
    """The name that torch gives the dtype of most of the weights."""
    sizes: Counter[str] = Counter()
    for span in checkpoint.tensors.values():
        sizes[span.dtype] += span.nbytes
    return DTYPES[sizes.most_common(1)[0][0]][1]


def _write_config(folder: Path, checkpoint: Checkpoint) -> None:
    """Give `config.json` every value of the merged model's, and what the quantization adds."""
    saved = json.loads((folder / CONFIG).read_bytes())
    # Without a dtype, transformers guesses it from the first tensor of a floating type: here, a constant may be that.
    added = {"dtype": saved["dtype"], "quantization_config": saved["quantization_config"]}
    (folder / CONFIG).write_text(json.dumps(checkpoint.config | added, indent=2) + "\n", encoding="utf-8")


def _copy_companions(merged: Path, folder: Path) -> None:
    (folder / "generation_config.json").unlink(missing_ok=True)  # transformers wrote one of its own
    for path in companions(merged):
        if path.name != CONFIG:
            place = folder / path.relative_to(merged)
            place.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place)
