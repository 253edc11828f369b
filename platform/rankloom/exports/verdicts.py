"""Whether an engine that serves adapters gives this one the meaning it was trained with."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rankloom.exports.plain import PlainAdapter, read_plain_adapter
from rankloom_registry.artifacts.keys import HEADS

Engine = Literal["vllm", "llama.cpp"]

# `vllm.config.lora.MaxLoRARanks`
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
_CONV1D = frozenset({"c_attn", "c_fc", "c_proj"})  # as GPT-2 names its layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one engine makes of an adapter.

    Attributes:
        engine: 'vllm' or 'llama.cpp'.
        ok: Whether it can serve the adapter, in its normalised form if `needs_normalised`.
        reasons: Why not.
        needs_normalised: Whether it would give the adapter as PEFT saved it another factor, in silence.
        notes: What to mind, such as the flag that it must be started with.
    """

    engine: Engine
    ok: bool
    reasons: tuple[str, ...]
    needs_normalised: bool
    notes: tuple[str, ...]


def verdicts(adapter: Path) -> tuple[Verdict, ...]:
    """Judge an adapter by its configuration and the headers of its tensors.

    Whether an engine knows the base's architecture is another question, and not answered here.

    Args:
        adapter: Folder as PEFT saved it.

    Returns:
        One verdict for each engine.

    Raises:
        PromotionError: A file is missing, or the configuration is not a JSON object.
        ArtifactError: The weights are not a sound safetensors file.
    """
    plain = read_plain_adapter(adapter)
    if plain.obstacles:
        return tuple(
            Verdict(engine=engine, ok=False, reasons=plain.obstacles, needs_normalised=False, notes=())
            for engine in ("vllm", "llama.cpp")
        )
    return _vllm(plain), _llama_cpp(plain)


def _vllm(plain: PlainAdapter) -> Verdict:
    config = plain.config
    alpha, r = config["lora_alpha"], config["r"]
    # `vllm.lora.peft_helper.PEFTHelper.__post_init__`: one factor for all modules.
    factor = alpha / (math.sqrt(r) if config.get("use_rslora") else r)
    differs = any(not math.isclose(update.scale, factor) for update in plain.updates.values())
    rank = plain.rank if differs else max(plain.rank, r)
    if rank > VLLM_RANKS[-1]:
        reason = f"vLLM's ranks end at {VLLM_RANKS[-1]}, this one's is {rank}: merge it instead"
        return Verdict(engine="vllm", ok=False, reasons=(reason,), needs_normalised=False, notes=())
    notes = [f"--max-lora-rank {next(most for most in VLLM_RANKS if most >= rank)}"]
    if config.get("use_rslora") and not differs:
        notes.append("versions before 0.7 do not know rsLoRA: give them the normalised form")
    if _leaves(plain) & HEADS:
        notes.append("it changes the output head, which vLLM serves for some architectures only")
    return Verdict(engine="vllm", ok=True, reasons=(), needs_normalised=differs, notes=tuple(notes))


def _llama_cpp(plain: PlainAdapter) -> Verdict:
    # GPT-2's Conv1D keeps its weight as (in, out); the converter takes B·A for (out, in) and transposes it.
    if plain.config.get("fan_in_fan_out"):
        reason = "its layers store (in, out), which llama.cpp's own conversion of adapters mixes up: use --gguf-type"
        return Verdict(engine="llama.cpp", ok=False, reasons=(reason,), needs_normalised=False, notes=())
    alpha = plain.config["lora_alpha"]
    # `llama_adapter_lora_weight::get_scale`: alpha over the tensor's own rank, and 1 for an alpha of 0.
    differs = any(
        not math.isclose(update.scale, alpha / update.rank if alpha else 1.0) for update in plain.updates.values()
    )
    notes = []
    if _leaves(plain) & HEADS:
        notes.append("it changes the output head, which llama.cpp refuses where the head is tied to the embeddings")
    if _leaves(plain) & _CONV1D:
        notes.append(
            "if the base is GPT-2, use --gguf-type: llama.cpp's own conversion mixes up layers that store (in, out)"
        )
    return Verdict(engine="llama.cpp", ok=True, reasons=(), needs_normalised=differs, notes=tuple(notes))


def _leaves(plain: PlainAdapter) -> set[str]:
    return {module.rpartition(".")[2] for module in plain.updates}
