"""Run as a program, by `rankloom.exports.gguf`: makes one GGUF file with llama.cpp's own converter.

The request is a JSON file. A process of its own, as importing the converter changes other libraries: auto-round, which
carries it, patches transformers and sets up logging. It imports nothing of rankloom, and reaches no network.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

# How the parent knows a refusal from a crash.
REFUSED = 3

# What the weight matrices of attention and feed-forward become; all else that can be quantized stays at q8_0.
BLOCK_MATRIX = r"blk\.\d+\.(attn_(q|k|v|qkv|output)|ffn_(gate|up|down)(_exps|_shexp)?)\.weight"
SMALL = {"q5_1": "Q5_1", "q4_1": "Q4_1"}


class Refused(Exception):
    """What was asked for cannot be made; the message is for the user."""


def main(request: dict[str, Any]) -> None:
    """Make the file that a request asks for."""
    from auto_round.export.export_to_gguf.llama_cpp_conversion import get_conversion

    _trust_no_code()
    folder = Path(request["model"])
    try:
        converter = get_conversion(folder, auto_update=False).module
        hparams = converter.ModelBase.load_hparams(folder, False)
        architecture = converter.get_model_architecture(hparams, converter.ModelType.TEXT)
        model_class = converter.get_model_class(architecture)
    except NotImplementedError as error:
        found = ", ".join(json.loads((folder / "config.json").read_bytes()).get("architectures") or ["none"])
        raise Refused(
            f"llama.cpp's converter must know the model's architecture, but {folder} has {found}; "
            "export safetensors, or upgrade auto-round"
        ) from error

    import torch

    make = _adapter_class if "updates" in request else _model_class
    with torch.inference_mode():
        instance = make(model_class, request)(
            folder, _file_type(request["type"]), Path(request["output"]), model_name=request["name"]
        )
        instance.write()


def _trust_no_code() -> None:
    """Keep a model's own Python code from being run: for some tokenizers the converter would, rankloom never does."""
    from transformers import AutoConfig, AutoTokenizer

    for auto in (AutoConfig, AutoTokenizer):
        load = auto.from_pretrained
        auto.from_pretrained = partial(_untrusting, load)  # type: ignore[method-assign]


def _untrusting(load: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    return load(*arguments, **{**options, "trust_remote_code": False})


def _file_type(name: str) -> Any:
    from gguf import LlamaFileType

    return (
        LlamaFileType.ALL_F32 if name == "f32" else LlamaFileType[f"MOSTLY_{'Q8_0' if name in SMALL else name.upper()}"]
    )


def _model_class(model_class: Any, request: dict[str, Any]) -> Any:
    """The converter's class of this architecture, which also knows the small types and GPT-2's way to split text."""
    import re

    import gguf

    small = SMALL.get(request["type"])

    class Model(model_class):  # type: ignore[misc, unused-ignore]
        model_arch = model_class.model_arch

        def tensor_force_quant(self, name: str, new_name: str, bid: int | None, n_dims: int) -> Any:
            if small and re.fullmatch(BLOCK_MATRIX, new_name):
                return gguf.GGMLQuantizationType[small]
            return super().tensor_force_quant(name, new_name, bid, n_dims)

        def prepare_tensors(self) -> None:
            super().prepare_tensors()
            if small:
                self.ftype = gguf.LlamaFileType[f"MOSTLY_{small}"]

        def get_vocab_base_pre(self, tokenizer: Any) -> str:
            try:
                return str(super().get_vocab_base_pre(tokenizer))
            except NotImplementedError as error:
                if _splits_as_gpt2(tokenizer):
                    return "gpt-2"
                raise Refused(
                    "llama.cpp must know how the tokenizer splits text, but the one in "
                    f"{request['model']} is none of those it knows; export safetensors, or upgrade auto-round"
                ) from error

    return Model


def _splits_as_gpt2(tokenizer: Any) -> bool:
    # The converter knows a tokenizer by a hash of what it makes of one text, so a new vocabulary is always unknown.
    # This is the rule that llama.cpp calls "gpt-2", said in full.
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    rule = state["pre_tokenizer"] or {}
    gpt2 = rule.get("type") == "ByteLevel" and rule.get("use_regex", True) and not rule["add_prefix_space"]
    return bool(gpt2) and state["normalizer"] is None and state["model"]["type"] == "BPE"


def _adapter_class(model_class: Any, request: dict[str, Any]) -> Any:
    """A class that writes the LoRA pairs of a request instead of the model's weights."""
    import gguf
    import torch
    from safetensors import safe_open

    updates: list[dict[str, Any]] = request["updates"]
    rank = max(update["rank"] for update in updates)
    stored = gguf.GGMLQuantizationType[request["type"].upper()]
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}[request["type"]]

    class Adapter(model_class):  # type: ignore[misc, unused-ignore]
        model_arch = model_class.model_arch

        def prepare_tensors(self) -> None:
            with safe_open(Path(request["adapter"]) / "adapter_model.safetensors", framework="pt") as weights:
                for update in updates:
                    a, b = (weights.get_tensor(update[half]).float() for half in ("lora_a", "lora_b"))
                    # llama.cpp multiplies with alpha / rank, one alpha for all: the scale goes into B, and zeros
                    # make all ranks the largest one.
                    a = torch.nn.functional.pad(a, (0, 0, 0, rank - update["rank"]))
                    b = torch.nn.functional.pad(b * update["scale"], (0, rank - update["rank"]))
                    for half, values in (("lora_a", a), ("lora_b", b)):
                        if not values.to(dtype).isfinite().all():
                            raise Refused(
                                f"a GGUF LoRA must be finite, but {update[half]} times its factor is too large for "
                                f"{request['type']}; store it as f32"
                            )
                    for name, rows, columns in self.placed(update, b.shape[0], a.shape[1]):
                        for half, values in (("lora_a", a[:, columns]), ("lora_b", b[rows])):
                            data = gguf.quants.quantize(values.contiguous().numpy(), stored)
                            self.gguf_writer.add_tensor(f"{name}.{half}", data, raw_dtype=stored)

        def placed(self, update: dict[str, Any], rows: int, columns: int) -> Iterable[tuple[str, Any, Any]]:
            """Say which rows and columns of a weight the converter puts where, by converting their numbers."""
            numbers = torch.arange(rows * columns).view(rows, columns)
            target = self.filter_tensors((update["target"], lambda: numbers))
            if target is None:
                raise Refused(f"a GGUF file of this model has no place for {update['target']}; merge the adapter")
            block = next((int(part) for part in target[0].split(".") if part.isdecimal()), None)
            made = list(self.modify_tensors(numbers.T if update["transposed"] else numbers, target[0], block))
            for name, found in made:
                if found.ndim == 2:
                    row, column = found[:, :1] // columns, found[:1] % columns
                    if torch.equal(found, row * columns + column):
                        yield name, row[:, 0].long(), column[0].long()
                        continue
                raise Refused(
                    f"a LoRA for GGUF must change weights whose rows and columns llama.cpp keeps whole, but it mixes "
                    f"those of {update['target']}; merge the adapter"
                )
            if not made:
                raise Refused(f"a GGUF file of this model has no place for {update['target']}; merge the adapter")

        def set_type(self) -> None:
            self.gguf_writer.add_type(gguf.GGUFType.ADAPTER)
            self.gguf_writer.add_string(gguf.Keys.Adapter.TYPE, "lora")

        def set_gguf_parameters(self) -> None:
            self.gguf_writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(rank))

        def set_vocab(self) -> None:
            pass

    return Adapter


def _leave_with_parent() -> None:
    # Nobody would take what is made, once the parent is killed. Not `sys.stdin.read`: its lock would be held at exit.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    try:
        main(json.loads(Path(sys.argv[1]).read_bytes()))
    except Refused as refusal:
        print(refusal)
        sys.exit(REFUSED)
