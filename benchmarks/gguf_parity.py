"""How far the GGUF files of a model say what the model says, teacher-forced on ten real texts.

Usage: python benchmarks/gguf_parity.py [--model FOLDER_OR_GGUF] [--texts 10] [--types f32,bf16,...] [--folder DIR]
By default the model is the quickstart's. It is computed in fp32 by Transformers, and so is the yardstick; the model in
its own bf16 stands beside the files, to show what that format's arithmetic costs by itself. Texts are docstrings of the
standard library. Prints one JSON document.
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
from rankloom.exports.gguf import GGUF_TYPES, export_gguf
from rankloom.exports.gguf_parity import ModelOnText, compare, differences, say
from rankloom.exports.gguf_runtime import GgufModel
from rankloom.models import resolve_base


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
    parser.add_argument("--types", default=",".join(GGUF_TYPES))
    parser.add_argument("--folder", type=Path, help="where the files go, and stay; by default a temporary folder")
    arguments = parser.parse_args()
    if arguments.model is None:
        from rankloom.quickstart import smollm2

        arguments.model = str(smollm2())
    base = resolve_base(arguments.model).path
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(json.dumps(measure(base, folder, texts(arguments.texts), arguments.types.split(",")), indent=2))


def measure(base: Path, folder: Path, chosen: list[str], types: list[str]) -> dict[str, Any]:
    """Compare each type's file with the model."""
    yardstick = on_texts(base, chosen, "float32")
    half = differences(yardstick, [one.logprobs for one in on_texts(base, chosen, "bfloat16")])
    rows: dict[str, Any] = {"transformers bf16": asdict(half)}
    for kind in types:
        file = folder / f"{base.name}-{kind}.gguf"
        started = time.perf_counter()
        export_gguf(base, file, type=kind)
        seconds = time.perf_counter() - started
        row = asdict(compare(yardstick, GgufModel(file)))
        rows[kind] = {**row, "bytes": file.stat().st_size, "export_seconds": round(seconds, 1)}
    return {"model": str(base), "texts": len(chosen), "files": rows}


def on_texts(base: Path, chosen: list[str], dtype: str) -> list[ModelOnText]:
    """Run the model over the texts with Transformers."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    return say(model, AutoTokenizer.from_pretrained(base), chosen)


if __name__ == "__main__":
    main()
