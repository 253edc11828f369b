"""How far the GGUF files of a model say what the model says, teacher-forced on ten real texts.

Usage: python benchmarks/gguf_parity.py [--model FOLDER_OR_GGUF] [--texts 10] [--types f32,bf16,...] [--folder DIR]
By default the model is the quickstart's. It is computed in fp32 by Transformers, and so is the yardstick; the model in
its own bf16 stands beside the files, to show what that format's arithmetic costs by itself. Each file is run twice: as
it is, and with its weights written out as float32, as llama.cpp rounds what it multiplies weights with to the file's
type. Last come GGUF LoRAs over the file in f32, beside PEFT: rank-stabilized, with rank and alpha patterns, of random
values. Texts are docstrings of the standard library. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import sysconfig
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rankloom.docstrings import documented_functions
from rankloom.exports.gguf import GGUF_TYPES, export_gguf, export_gguf_lora
from rankloom.exports.gguf_parity import compare, differences, say, write_in_f32
from rankloom.exports.gguf_runtime import GgufModel
from rankloom.models import load_tokenizer, resolve_base


def texts(count: int) -> list[str]:
    """Return texts from all over the standard library, in its order."""
    rows = list(documented_functions(Path(sysconfig.get_paths()["stdlib"])))
    chosen = rows[:: len(rows) // count][:count]
    return [f"Python function: {signature}\nSummary: {summary}" for signature, summary in chosen]


def main() -> None:
    """Export, run, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder, .gguf file or hub id; by default the quickstart's model")
    parser.add_argument("--texts", type=int, default=10)
    parser.add_argument("--types", default=",".join(GGUF_TYPES), help="f32 is always among them")
    parser.add_argument("--lora-types", default="f32,f16")
    parser.add_argument("--folder", type=Path, help="where the files go, and stay; by default a temporary folder")
    arguments = parser.parse_args()
    if arguments.model is None:
        from rankloom.quickstart import smollm2

        arguments.model = str(smollm2())
    base = resolve_base(arguments.model).path
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        chosen = texts(arguments.texts)
        types = list(dict.fromkeys(["f32", *arguments.types.split(",")]))
        rows = compare_types(base, folder, chosen, types)
        rows |= compare_loras(base, folder, chosen, arguments.lora_types.split(","))
        print(json.dumps({"model": str(base), "texts": len(chosen), "files": rows}, indent=2))


def compare_types(base: Path, folder: Path, chosen: list[str], types: list[str]) -> dict[str, Any]:
    """Compare each type's file with the model."""
    tokenizer = load_tokenizer(base)
    yardstick = say(load(base, "float32"), tokenizer, chosen)
    half = say(load(base, "bfloat16"), tokenizer, chosen)
    rows: dict[str, Any] = {"transformers bf16": asdict(differences(yardstick, [one.logprobs for one in half]))}
    for kind in types:
        file = folder / f"{base.name}-{kind}.gguf"
        started = time.perf_counter()
        export_gguf(base, file, type=kind)
        seconds = time.perf_counter() - started
        row = asdict(compare(yardstick, GgufModel(file)))
        rows[kind] = {**row, "bytes": file.stat().st_size, "export_seconds": round(seconds, 1)}
        if kind != "f32":
            write_in_f32(file, exact := folder / f"{file.stem}-in-f32.gguf")
            rows[f"{kind}, weights in f32"] = asdict(compare(yardstick, GgufModel(exact)))
            exact.unlink()
    return rows


def compare_loras(base: Path, folder: Path, chosen: list[str], types: list[str]) -> dict[str, Any]:
    """Compare GGUF LoRAs over the file in f32 with PEFT's adapter over the model in fp32."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LoraConfig(
        r=16,
        lora_alpha=16,
        use_rslora=True,
        target_modules="all-linear",
        rank_pattern={"q_proj": 32, "down_proj": 8},
        alpha_pattern={"v_proj": 64, "up_proj": 4},
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(load(base, "float32"), config).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.003)
    model.save_pretrained(folder / "adapter")
    said = say(model, load_tokenizer(base), chosen)
    under = folder / f"{base.name}-f32.gguf"
    rows = {"no lora": asdict(compare(said, GgufModel(under)))}
    for kind in types:
        file = folder / f"{base.name}-lora-{kind}.gguf"
        export_gguf_lora(folder / "adapter", base, file, type=kind)
        rows[f"lora {kind}"] = {**asdict(compare(said, GgufModel(under, adapter=file))), "bytes": file.stat().st_size}
    return rows


def load(base: Path, dtype: str) -> Any:
    """Load the model with Transformers."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype)


if __name__ == "__main__":
    main()
