"""What an adapter's model has lost when it leaves the 4-bit base that it was trained on.

    python benchmarks/merge_drift.py [--steps 40] [--rows 64] [--formats nf4 gguf-f16 gguf-q8_0] [--model FOLDER]

One real QLoRA of SmolLM2-135M-Instruct (NF4, double quantization) on docstrings of the standard library, promoted in
every way that `rankloom promote` knows; each model is measured beside the adapter as trained, on the rows that the
search held out and on general text. Prints a Markdown table a split, and one JSON document with `--output`.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rankloom import Search
from rankloom.docstrings import write_docstring_rows
from rankloom.promotion.promote import promote
from rankloom.quickstart import smollm2
from rankloom_registry import Registry

FORMATS = ["nf4", "gguf-f16", "gguf-q8_0"]
LABELS = {
    "adapter": "NF4 + adapter, as trained",
    "rounding": "the same in another precision (noise floor)",
    "full-precision": "merged into the full-precision base",
    "as-trained": "merged into the dequantized NF4 base",
    "nf4": "merged, re-quantized to NF4",
    "base": "NF4 base, no adapter",
}


def train(model: str, folder: Path, steps: int, rows: int) -> Registry:
    """Search one configuration."""
    write_docstring_rows(folder / "rows.jsonl")
    search = Search(
        model,
        str(folder / "rows.jsonl"),
        space="lora-small",
        num_samples=1,
        registry=folder / "registry.duckdb",
        name="drift",
        training={
            "max_steps": steps,
            "eval_steps": steps,
            "per_device_train_batch_size": 4,
            "max_length": 96,
            "max_eval_samples": rows,
        },
    )
    return Registry.open(search.run().registry)


def measure(registry: Registry, folder: Path, formats: Sequence[str]) -> dict[str, Any]:
    """Promote in every way; returns what was measured, by split and model."""
    (adapter,) = registry.adapters()
    found: dict[str, Any] = {}
    for wanted in ["safetensors", *formats]:
        format, _, gguf_type = wanted.partition("-")
        options: dict[str, Any] = {"gguf_type": gguf_type} if gguf_type else {}
        made = promote(
            registry,
            adapter.adapter_id,
            folder / wanted,
            format=format,  # type: ignore[arg-type]
            compare=wanted == "safetensors",
            verify="full",
            force=True,  # a table shows the bad ones, too
            reason="to be measured",
            **options,
        )
        for split, models in made.checks["measured"].items():
            found.setdefault(split, {}).update(models)
        print(f"{wanted}: {made.checks['drift']}", file=sys.stderr, flush=True)
    return found


def table(split: str, models: dict[str, Any]) -> str:
    """Draw a split as Markdown."""
    lines = [
        f"{split}, {models['rows']} rows",
        "",
        "| model | loss | difference [95%] | KL | same top token | gain kept |",
        "|---|---|---|---|---|---|",
    ]
    trained, alone = models["adapter"]["loss"], models["base"]["loss"]
    for name in sorted(models.keys() - {"rows"}, key=lambda name: [*LABELS].index(name) if name in LABELS else 4.5):
        one = models[name]
        cells = [LABELS.get(name, f"merged, {name}"), f"{one['loss']:.4f}"]
        if name == "adapter":
            cells += ["0", "0", "–", "100%"]
        else:
            kept = f"{(alone - one['loss']) / (alone - trained):.0%}" if alone > trained else "–"
            cells.append(f"{one['delta']:+.4f} [{one['low']:+.4f}, {one['high']:+.4f}]")
            cells += [f"{one['kl']:.4f}", f"{one['top1']:.1%}", kept]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> dict[str, Any]:
    """Train, promote, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--rows", type=int, default=64, help="held out")
    parser.add_argument("--formats", nargs="*", default=FORMATS, help="besides merged safetensors: nf4, gguf-TYPE")
    parser.add_argument("--model", help="folder, .gguf file or hub id; by default the quickstart's")
    parser.add_argument("--folder", type=Path, help="where to work")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="merge-drift-", dir=options.folder) as name:
        registry = train(options.model or str(smollm2()), Path(name), options.steps, options.rows)
        found = measure(registry, Path(name), options.formats)
    if options.output:
        options.output.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    for split, models in found.items():
        print(table(split, models) + "\n")
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
