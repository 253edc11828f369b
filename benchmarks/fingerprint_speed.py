"""How fast a base is fingerprinted, against `cat FILE > /dev/null` on the same file.

Usage: python benchmarks/fingerprint_speed.py [--gib 1.5] [--dtype BF16] [--repeats 5] [--folder DIR] [--output FILE]
Writes a file of random weights to a temporary folder and reads it with both in turn: cold, after its pages were
dropped from the page cache, and warm. Prints one JSON document: each sample, and medians in GB/s (10⁹ bytes of the file
a second). A sample says how much came from the disk, so that a cold one can be told from one that only should be.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from rankloom_registry import fingerprint_base

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4}
VOCABULARY = 32_000


def write_base(folder: Path, *, size: int, dtype: str, hidden: int) -> Path:
    """Write about `size` bytes of random weights in the shapes of a Llama, and make them durable."""
    shapes = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    layer = 0
    while sum(rows * columns for rows, columns in shapes.values()) * ITEM_BYTES[dtype] < size:
        for name, rows, columns in (
            *[(f"self_attn.{part}_proj", hidden, hidden) for part in "qo"],
            *[(f"self_attn.{part}_proj", hidden // 4, hidden) for part in "kv"],
            *[(f"mlp.{part}_proj", 4 * hidden, hidden) for part in ("gate", "up")],
            ("mlp.down_proj", hidden, 4 * hidden),
            ("input_layernorm", 1, hidden),
        ):
            shapes[f"model.layers.{layer}.{name}.weight"] = (rows, columns)
        layer += 1
    header: dict[str, Any] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + shape[0] * shape[1] * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    random = np.random.default_rng(0)
    path = folder / "model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in shapes.values():
            values = random.standard_normal(shape, np.float32)
            match dtype:
                case "BF16":
                    file.write((values.view(np.uint32) >> 16).astype(np.uint16).data)
                case "F16":
                    file.write(values.astype(np.float16).data)
                case _:
                    file.write(values.data)
        file.flush()
        os.fsync(file.fileno())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "tie_word_embeddings": False}))
    return path


def drop_pages(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_from_disk() -> int | None:
    """Bytes that this process and its ended children made the disk deliver; None where the system does not say."""
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def cpu_seconds() -> float:
    """What this process and its ended children have used; unlike wall time it hardly depends on the neighbours."""
    return sum(os.times()[:4])


@contextmanager
def no_remembered_leaves() -> Iterator[None]:
    with tempfile.TemporaryDirectory() as folder, patch.dict(os.environ, XDG_CACHE_HOME=folder):
        yield


def cat(path: Path) -> None:
    subprocess.run(["cat", str(path)], stdout=subprocess.DEVNULL, check=True)


def fingerprint(path: Path) -> None:
    with no_remembered_leaves():
        fingerprint_base(path.parent)


def sample(what: Callable[[Path], None], path: Path, *, cold: bool) -> dict[str, Any]:
    if cold:
        drop_pages(path)
    before, cpu = read_from_disk(), cpu_seconds()
    started = time.perf_counter()
    what(path)
    seconds = time.perf_counter() - started
    after = read_from_disk()
    return {
        "what": what.__name__,
        "cold": cold,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds() - cpu,
        "gb_s": path.stat().st_size / seconds / 1e9,
        "disk_bytes": None if before is None or after is None else after - before,
    }


def summary(samples: list[dict[str, Any]], *, cold: bool) -> dict[str, float]:
    speeds = {
        name: statistics.median(one["gb_s"] for one in samples if one["what"] == name and one["cold"] == cold)
        for name in ("cat", "fingerprint")
    }
    return {f"{name}_gb_s": round(speed, 3) for name, speed in speeds.items()} | {
        "ratio": round(speeds["fingerprint"] / speeds["cat"], 3)
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=1.5, help="size of the file, GiB")
    parser.add_argument("--dtype", choices=ITEM_BYTES, default="BF16")
    parser.add_argument("--hidden", type=int, default=2048, help="hidden size: how large the tensors are")
    parser.add_argument("--repeats", type=int, default=5, help="samples of each kind")
    parser.add_argument("--folder", type=Path, help="where the file is written, on the disk to be measured")
    parser.add_argument("--output", type=Path, help="file for the JSON document, instead of stdout")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        path = write_base(Path(folder), size=int(options.gib * 2**30), dtype=options.dtype, hidden=options.hidden)
        samples = [
            sample(what, path, cold=cold)
            for _ in range(options.repeats)
            for cold in (True, False)  # what is read cold is warm afterwards
            for what in (cat, fingerprint)
        ]
        document = {
            "bytes": path.stat().st_size,
            "dtype": options.dtype,
            "cores": os.cpu_count(),
            "cold": summary(samples, cold=True),
            "warm": summary(samples, cold=False),
            "samples": samples,
        }
    text = json.dumps(document, indent=2)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    else:
        print(text)


if __name__ == "__main__":
    main()
