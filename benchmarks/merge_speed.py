"""How fast and in how much memory an adapter is merged, against PEFT's `merge_and_unload()` and against `cp`.

Usage: python benchmarks/merge_speed.py [--gigabytes 4.4] [--shards 5] [--rank 16] [--rounds 3] [--folder DIR]
       python benchmarks/merge_speed.py --sizes 1.1 4.4
Generates a checkpoint in the shapes of a Llama (random bf16) and an adapter of every linear layer in a temporary
folder, and makes it into a merged model with each method in turn, each in a process of its own that imports first and
starts the clock then; every method's files are on the disk when the clock stops. Prints one JSON document: each sample,
medians, their ratios, and how many elements differ from PEFT's. With --sizes, it is how our memory grows instead.

Memory is anonymous memory, sampled from /proc/PID/status (RssAnon) every 10 ms: what a process cannot do without.
Pages of files that are mapped or cached are not in it, as the system takes them back when it likes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

METHODS = ("cp", "peft", "full-precision", "as-trained")
QUANTIZATION = {"bnb_4bit_compute_dtype": "bfloat16"}
STANDARD_DEVIATION = 0.02


def write_base(folder: Path, *, size: int, shards: int) -> None:
    """Write about `size` bytes of random weights in the shapes of a Llama, in several files with an index."""
    import torch
    from safetensors.torch import save_file
    from transformers import GenerationConfig, LlamaConfig

    large = size > 500e6
    hidden, inner, vocabulary = (2048, 5632, 32_000) if large else (256, 704, 512)
    layer_bytes = (4 * hidden * hidden + 3 * hidden * inner + 2 * hidden) * 2
    layers = max(1, round((size - 4 * hidden * vocabulary) / layer_bytes))
    LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        tie_word_embeddings=False,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    GenerationConfig().save_pretrained(folder)
    shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.self_attn.{part}_proj.weight": (hidden, hidden) for part in "qkvo"}
        shapes |= {f"model.layers.{layer}.mlp.{part}_proj.weight": (inner, hidden) for part in ("gate", "up")}
        shapes[f"model.layers.{layer}.mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"model.layers.{layer}.{part}_layernorm.weight": (hidden,) for part in ("input", "post_attention")}
    shapes |= {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}
    torch.manual_seed(0)
    total = sum(2 * torch.Size(shape).numel() for shape in shapes.values())
    weight_map: dict[str, str] = {}
    held: dict[str, torch.Tensor] = {}
    done = number = 0
    for name, shape in shapes.items():
        held[name] = torch.empty(shape, dtype=torch.bfloat16).normal_(0, STANDARD_DEVIATION)
        done += held[name].nbytes
        if done >= total * (number + 1) / shards:
            number += 1
            file = f"model-{number:05}-of-{shards:05}.safetensors"
            save_file(held, folder / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(held, file)
            held = {}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def write_adapter(folder: Path, base: Path, *, rank: int) -> None:
    """Write an adapter of every linear layer, with an update of about a hundredth of the weights."""
    import peft
    import torch
    from safetensors.torch import save_file

    from rankloom_registry.formats.checkpoint import open_checkpoint

    parts = [f"{part}_proj" for part in ("q", "k", "v", "o", "gate", "up", "down")]
    config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=parts, task_type="CAUSAL_LM")
    config.inference_mode = True
    config.save_pretrained(str(folder))
    tensors = {}
    for name, span in open_checkpoint(base).tensors.items():
        if name.split(".")[-2] in parts:
            module = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{module}.lora_A.weight"] = torch.empty(rank, span.shape[1]).normal_(0, STANDARD_DEVIATION)
            tensors[f"{module}.lora_B.weight"] = torch.empty(span.shape[0], rank).normal_(0, 1e-3)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def copy(base: Path, adapter: Path, output: Path) -> None:
    subprocess.run(["cp", "-r", str(base), str(output)], check=True)
    subprocess.run(["sync", *map(str, output.iterdir()), str(output)], check=True)


def merge_with_peft(base: Path, adapter: Path, output: Path) -> None:
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    largest = max(path.stat().st_size for path in base.glob("*.safetensors"))
    merged.save_pretrained(output, max_shard_size=largest)
    subprocess.run(["sync", *map(str, output.iterdir()), str(output)], check=True)


def merge_with_rankloom(recipe: Any) -> Callable[[Path, Path, Path], None]:
    def merge(base: Path, adapter: Path, output: Path) -> None:
        from rankloom.config import QuantizationConfig
        from rankloom.merging.merge import merge_adapter

        quantization = QuantizationConfig.model_validate(QUANTIZATION)
        merge_adapter(adapter=adapter, base=base, output=output, recipe=recipe, quantization=quantization)

    return merge


RUNS = {
    "cp": copy,
    "peft": merge_with_peft,
    "full-precision": merge_with_rankloom("full-precision"),
    "as-trained": merge_with_rankloom("as-trained"),
}


def run_here(method: str, base: Path, adapter: Path, output: Path) -> None:
    """Run a method and print its times; this is what a process of its own is started for."""
    if method != "cp":
        import bitsandbytes  # noqa: F401  # everybody's imports are done before the clock starts
        import peft  # noqa: F401
        import transformers
        from transformers import AutoModelForCausalLM  # noqa: F401

        import rankloom.merging.merge  # noqa: F401

        transformers.logging.disable_progress_bar()
    print(json.dumps({"imported_bytes": anonymous_bytes(os.getpid())}), flush=True)
    began, cpu = time.perf_counter(), sum(os.times()[:4])
    RUNS[method](base, adapter, output)
    print(json.dumps({"wall_s": time.perf_counter() - began, "cpu_s": sum(os.times()[:4]) - cpu}))


def sample(method: str, base: Path, adapter: Path, output: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", method, *map(str, (base, adapter, output))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, anonymous_bytes(process.pid))
            time.sleep(0.01)
        told, complaint = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"{method} failed:\n{complaint[-3000:]}")
    lines = [json.loads(line) for line in told.splitlines() if line.startswith("{")]
    return {"method": method, **lines[0], **lines[-1], "peak_bytes": peak, "load": os.getloadavg()[0]}


def anonymous_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon")), 0)


def differing_elements(one: Path, other: Path) -> tuple[int, int]:
    """Count the elements that differ between two folders of 16-bit weights, and all that were compared."""
    import numpy as np

    from rankloom_registry.formats.checkpoint import open_checkpoint

    found = {}
    for folder in (one, other):
        checkpoint = open_checkpoint(folder)
        for path, header in checkpoint.files.items():
            for name, span in header.tensors.items():
                data = np.memmap(path, np.uint16, "r", header.data_start + span.start, (span.nbytes // 2,))
                found.setdefault(name, []).append(data)
    assert all(len(pair) == 2 for pair in found.values()), "both folders must hold the same tensors"
    differing = sum(int(np.count_nonzero(a != b)) for a, b in found.values())
    return differing, sum(len(a) for a, _ in found.values())


def compare(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure all methods in turn on one checkpoint."""
    base, adapter = generate(folder, options.gigabytes, options)
    samples = []
    differing = None
    for _ in range(options.rounds):
        for method in METHODS:
            samples.append(sample(method, base, adapter, folder / method))
            if method == "full-precision" and differing is None:
                differing = differing_elements(folder / "peft", folder / method)
            if method != "peft":
                shutil.rmtree(folder / method)
        shutil.rmtree(folder / "peft")
    figures = {
        method: {key: statistics.median(one[key] for one in samples if one["method"] == method) for key in one_of}
        for method in METHODS
        for one_of in (("wall_s", "cpu_s", "peak_bytes", "imported_bytes"),)
    }
    ours, trained, theirs, plain = (figures[m] for m in ("full-precision", "as-trained", "peft", "cp"))
    assert differing is not None
    return {
        "bytes": sum(path.stat().st_size for path in base.iterdir()),
        "rank": options.rank,
        "cores": os.cpu_count(),
        "median": figures,
        "ratios": {
            "wall_to_peft": ours["wall_s"] / theirs["wall_s"],
            "wall_to_cp": ours["wall_s"] / plain["wall_s"],
            "memory_to_peft": ours["peak_bytes"] / theirs["peak_bytes"],
            "as_trained_wall_to_full_precision": trained["wall_s"] / ours["wall_s"],
        },
        "elements_compared_with_peft": differing[1],
        "elements_that_differ_from_peft": differing[0],
        "samples": samples,
    }


def grow(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Measure our memory on checkpoints of several sizes, whose largest tensors are alike."""
    found = []
    for size in options.sizes:
        place = folder / str(size)
        place.mkdir()
        base, adapter = generate(place, size, options)
        for method in ("full-precision", "as-trained"):
            one = sample(method, base, adapter, place / method)
            found.append({"gigabytes": size, **one})
            shutil.rmtree(place / method)
        shutil.rmtree(place)
    return {"samples": found}


def generate(folder: Path, gigabytes: float, options: argparse.Namespace) -> tuple[Path, Path]:
    base, adapter = folder / "base", folder / "adapter"
    for path in (base, adapter):
        path.mkdir()
    write_base(base, size=int(gigabytes * 1e9), shards=options.shards)
    write_adapter(adapter, base, rank=options.rank)
    os.sync()
    return base, adapter


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=4.4, help="size of the checkpoint, 10^9 bytes")
    parser.add_argument("--shards", type=int, default=5, help="weight files of the checkpoint")
    parser.add_argument("--rank", type=int, default=16, help="rank of the adapter")
    parser.add_argument("--rounds", type=int, default=3, help="samples of each method")
    parser.add_argument("--sizes", type=float, nargs="+", help="measure memory at these sizes instead, 10^9 bytes")
    parser.add_argument("--folder", type=Path, help="where to write, on the disk to be measured: thrice the checkpoint")
    parser.add_argument("--one", nargs=4, metavar=("METHOD", "BASE", "ADAPTER", "OUTPUT"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        run_here(options.one[0], *map(Path, options.one[1:]))
        return None
    with tempfile.TemporaryDirectory(prefix="rankloom-benchmark-", dir=options.folder) as folder:
        found = grow(Path(folder), options) if options.sizes else compare(Path(folder), options)
    print(json.dumps(found, indent=2))
    return found


if __name__ == "__main__":
    main()
