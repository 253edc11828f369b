"""The form of an adapter that every reader understands alike: the factor is in B, and all modules have one rank.

PEFT's configuration leaves a module's factor to be worked out, and readers work it out differently. vLLM takes `r` and
`lora_alpha` of the configuration for all modules (`vllm/lora/peft_helper.py`), llama.cpp the configuration's
`lora_alpha` over the rank of the module's own tensors (`llama_adapter_lora_weight::get_scale`); neither reads a
pattern, and llama.cpp nothing of rsLoRA. With lora_alpha = r and every tensor of that rank, the factor is 1 for all
of them. Modules of smaller rank are therefore filled up with zeros, which add nothing to B·A.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn.functional import pad

from rankloom.errors import PromotionError
from rankloom.exports.plain import read_plain_adapter
from rankloom.outputs import whole_folder
from rankloom_registry.artifacts.place import CONFIG, WEIGHTS


def normalise(adapter: Path, output: Path) -> None:
    """Write an adapter with each module's factor in its B, lora_alpha = r, and no patterns.

    Args:
        adapter: Folder of a LoRA or rsLoRA adapter as PEFT saved it.
        output: Folder to make; it may exist only if it is empty.

    Raises:
        PromotionError: Something of the adapter is not a factor times B·A, a value is not finite, or the output exists.
    """
    plain = read_plain_adapter(adapter)
    if plain.obstacles:
        raise PromotionError(
            f"only LoRA of linear layers has a normalised form, but of {adapter}: {'; '.join(plain.obstacles)}"
        )
    rank = plain.rank
    tensors: dict[str, torch.Tensor] = {}
    with safe_open(adapter / WEIGHTS, framework="pt") as weights:
        for module, update in plain.updates.items():
            a, b = f"{module}.lora_A.weight", f"{module}.lora_B.weight"
            missing = rank - update.rank
            tensors[a] = pad(weights.get_tensor(a), (0, 0, 0, missing)).contiguous()
            tensors[b] = pad(_scaled(weights.get_tensor(b), update.scale, b), (0, missing)).contiguous()
    config = plain.config | {
        "r": rank,
        "lora_alpha": rank,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    with whole_folder(output) as folder:
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")


def _scaled(b: torch.Tensor, scale: float, name: str) -> torch.Tensor:
    """Return scale · B in float32, or in B's own dtype where that holds every product exactly."""
    product = b.float() * scale
    if not product.isfinite().all():
        raise PromotionError(f"{name} must be finite in float32 times its factor {scale:.6g}; export another adapter")
    short = product.to(b.dtype)
    return short if torch.equal(short.float(), product) else product
