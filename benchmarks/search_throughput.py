"""What packing trials onto one resident base is worth, against one after the other and against Ray Tune.

    python benchmarks/search_throughput.py throughput --model FOLDER --batch-size 1 --length 128 --slots 8
    python benchmarks/search_throughput.py search     --model FOLDER --configurations 12 --steps 20
    python benchmarks/search_throughput.py winner     --model FOLDER

`throughput` times the engines alone, without Ray: `sequential` (one TRL SFTTrainer after the other on one resident
base), `lane-1` (the packed engine with one slot) and `packed` (with `--slots`). Tokens per CPU-second; on a GPU, per
second. `ratios` are of whole trials, their set-up and last evaluation included; `step_ratios` of the steps between.
`search` times whole searches: `tune` (Ray Tune and TRL, an actor per trial), `tune-reuse` (the base stays in the actor)
and `rankloom`. `winner` sets the full grid, one trial after the other and evaluated once at its end, against a search
with early stopping. Both count all that a user waits for: imports, Ray's start and end, tokenising, loading the base.

The same configurations, rows and steps in each mode; the modes take turns, in another order for each seed. One JSON
document: every sample, the medians, and the ratios of each seed's samples. `throughput_figure.py` draws it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

from _world import SHAPES, axes, grid, machine, random_llama, write_text_rows

from rankloom.config import QuantizationConfig, TrainingConfig

Sample = dict[str, Any]
Document = dict[str, Any]

MODES = {
    "throughput": ("sequential", "lane-1", "packed"),
    "search": ("tune", "tune-reuse", "rankloom"),
    "winner": ("sequential", "rankloom"),
}
ORDER = (
    "sequential",
    "lane-1",
    "packed",
    "tune",
    "tune-reuse",
    "rankloom",
)  # the first one measured is what ratios are to


def throughput(options: argparse.Namespace, model: Path) -> Document:
    """Time the engines."""
    import torch
    from _engines import Shape, measuring

    on_gpu = torch.cuda.is_available()
    shape = Shape(
        model=model,
        training=_training(options, eval_steps=options.steps),
        quantization=_quantization(options),
        configurations=grid(axes(options.configurations, options.ranks))[: options.configurations],
        slots=options.slots,
        eval_rows=options.eval_rows,
    )
    separate = not on_gpu if options.separate is None else options.separate
    with measuring(shape, options.modes, separate=separate) as measure:
        samples = take_turns(options.modes, options.seeds, measure)
    unit = "tokens per second of the GPU" if on_gpu else "tokens per CPU-second"
    return {
        "peak_memory": "of the GPU, in each run"
        if on_gpu
        else "of each mode's own process"
        if separate
        else "of one process, for all modes",
        "title": f"{options.slots} slots × ({options.batch_size}×{options.length} tokens)",
        **summary(samples, "tokens_per_second", unit),
        "step_ratios": ratios(samples, "step_tokens_per_second"),
        "largest_difference": {
            "train_loss": largest_difference([(s["seed"], s["train_loss"]) for s in samples]),
            "eval_loss": largest_difference([(s["seed"], s["eval_loss"]) for s in samples]),
        },
        "samples": samples,
    }


def search(options: argparse.Namespace, model: Path) -> Document:
    """Time whole searches of one grid, every trial to its end."""
    samples = _searched(options, model, "fifo", options.eval_steps or max(1, options.steps // 2))
    return {
        "title": f"{len(samples[0]['trials'])} configurations × {options.steps} steps",
        **summary(samples, "wall_s", "seconds from start to end"),
        "largest_difference": {"eval_loss": largest_difference([(s["seed"], _losses(s)) for s in samples])},
        "samples": samples,
    }


def winner(options: argparse.Namespace, model: Path) -> Document:
    """Time the full grid against a search that stops early, and compare what they found."""
    samples = _searched(options, model, "asha", options.eval_steps or 3)
    best = [{"mode": s["mode"], "seed": s["seed"], **min(s["trials"], key=lambda t: t["eval_loss"])} for s in samples]
    return {
        "title": f"the best of {len(samples[0]['trials'])} configurations, {options.steps} steps",
        **summary(samples, "wall_s", "seconds from start to end"),
        "best": best,
        "best_eval_loss_ratios": ratios(best, "eval_loss"),
        "steps_trained": {
            mode: [sum(t["steps"] for t in s["trials"]) for s in samples if s["mode"] == mode] for mode in options.modes
        },
        "samples": samples,
    }


def take_turns(modes: Sequence[str], seeds: Sequence[int], measure: Callable[[str, int], Sample]) -> list[Sample]:
    """Measure each mode with each seed; each seed begins with another mode."""
    samples = []
    for turn, seed in enumerate(seeds):
        first = turn % len(modes)
        for mode in (*modes[first:], *modes[:first]):
            samples.append(measure(mode, seed))
            numbers = {key: f"{value:.4g}" for key, value in samples[-1].items() if isinstance(value, float)}
            print(f"seed {seed}, {mode}: {numbers}", file=sys.stderr, flush=True)
    return samples


def summary(samples: Sequence[Sample], quantity: str, unit: str) -> Document:
    """Return each mode's samples and median of a quantity, and the ratios to the first mode."""
    modes = dict.fromkeys(sample["mode"] for sample in sorted(samples, key=_order))
    values = {mode: [s[quantity] for s in samples if s["mode"] == mode] for mode in modes}
    return {
        "quantity": quantity,
        "unit": unit,
        "values": values,
        "medians": {mode: median(numbers) for mode, numbers in values.items()},
        "ratios": ratios(samples, quantity),
    }


def ratios(samples: Sequence[Sample], quantity: str) -> dict[str, dict[str, float]]:
    """Return the ratio of each mode to the first one: seed by seed, so that both had the same machine."""
    by_mode: dict[str, dict[int, float]] = {}
    for sample in sorted(samples, key=_order):
        if sample[quantity] is not None:
            by_mode.setdefault(sample["mode"], {})[sample["seed"]] = sample[quantity]
    first, *others = by_mode
    found = {}
    for mode in others:
        each = [value / by_mode[first][seed] for seed, value in by_mode[mode].items()]
        found[f"{mode}/{first}"] = {"median": median(each), "min": min(each), "max": max(each)}
    return found


def largest_difference(losses: Sequence[tuple[int, Sequence[float]]]) -> float:
    """Return how far apart the modes are at most in a configuration's loss, relative to it.

    Args:
        losses: A seed and the losses of each configuration, of every sample.
    """
    return max(
        float((max(same) - min(same)) / min(same))
        for seed in {seed for seed, _ in losses}
        for same in zip(*(values for other, values in losses if other == seed), strict=True)
    )


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(arguments)
    model = options.model or random_llama(options.random_llama)
    began = datetime.now(UTC)
    measure = {"throughput": throughput, "search": search, "winner": winner}[options.part]
    found = measure(options, model)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    document = {"part": options.part, "began": began.isoformat(), "machine": machine(), "settings": settings, **found}
    if options.output:
        options.output.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    shown = {key: value for key, value in document.items() if key not in ("samples", "settings")}
    print(json.dumps(shown, indent=1, ensure_ascii=False))


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    for name, modes in MODES.items():
        part = parts.add_parser(name)
        base = part.add_mutually_exclusive_group(required=True)
        base.add_argument("--model", type=Path, help="folder of safetensors")
        base.add_argument("--random-llama", choices=SHAPES, help="random weights of this shape instead")
        add = part.add_argument
        add("--modes", nargs="+", choices=modes, default=list(modes), help="which to run; ratios are to the first")
        add("--seeds", nargs="+", type=int, default=[0, 1, 2])
        add("--batch-size", type=int, default=1, help="rows of a trial in one pass")
        add("--length", type=int, default=128, help="tokens of a row")
        add("--ranks", nargs="+", type=int, default=[4, 8, 16], help="of the grid; its other axis is learning rates")
        add("--steps", type=int, default=27 if name == "winner" else 20, help="optimizer steps of a trial")
        add("--compute-dtype", default="auto", help="of matrix products, such as float32")
        add("--gradient-checkpointing", action=argparse.BooleanOptionalAction, help="on for CUDA, off for the CPU")
        add("--output", type=Path, help="file for the whole document")
        if name == "throughput":
            add("--slots", type=int, default=8)
            add("--configurations", type=int, help="trials; twice the slots if unset")
            # Evaluation is a trial's end and is timed with it; so few rows hide little of what is compared.
            add("--eval-rows", type=int, default=2)
            add("--separate", action=argparse.BooleanOptionalAction, help="a process per mode; on for the CPU")
        else:
            add("--slots", type=int, help="trials at a time in our search; measured by its lane if unset")
            add("--configurations", type=int, default=12, help="trials, filled up to a whole grid")
            add("--eval-rows", type=int, default=32)
            add("--eval-steps", type=int, help="steps between evaluations: 3 for winner, half of the steps for search")
            add("--dataset", type=Path, help=".jsonl of rows; docstrings of the standard library if unset")
            add("--concurrent", type=int, default=1, help="trials of Ray Tune at a time")
    options = parser.parse_args(arguments)
    options.configurations = options.configurations or 2 * options.slots
    if options.part == "throughput" and options.steps < 2:
        parser.error("--steps must be 2 or more, for there to be time between steps")
    return options


def _searched(options: argparse.Namespace, model: Path, scheduler: str, eval_steps: int) -> list[Sample]:
    import tempfile

    from _searches import measured
    from _task import Task

    with tempfile.TemporaryDirectory(prefix="rankloom-benchmark-") as folder:
        dataset = options.dataset or Path(folder) / "docstrings.jsonl"
        if options.dataset is None:
            write_text_rows(dataset, options.length)
        task = Task(
            model=model.absolute(),
            dataset=dataset.absolute(),
            training=_training(options, eval_steps=eval_steps),
            quantization=_quantization(options),
            axes=axes(options.configurations, options.ranks),
            scheduler=scheduler,
            slots=options.slots,
            concurrent=options.concurrent,
        )
        return take_turns(options.modes, options.seeds, lambda mode, seed: measured(mode, task, seed))


def _training(options: argparse.Namespace, *, eval_steps: int) -> TrainingConfig:
    return TrainingConfig(
        max_steps=options.steps,
        eval_steps=eval_steps,
        eval_strategy="rungs",  # in the modes that stop nobody, the same steps
        per_device_train_batch_size=options.batch_size,
        max_length=options.length,
        max_eval_samples=options.eval_rows,
        gradient_checkpointing=options.gradient_checkpointing,
    )


def _quantization(options: argparse.Namespace) -> QuantizationConfig:
    return QuantizationConfig(bnb_4bit_compute_dtype=options.compute_dtype)


def _losses(sample: Sample) -> list[float]:
    return [trial["eval_loss"] for trial in sample["trials"]]


def _order(sample: Sample) -> int:
    return ORDER.index(sample["mode"])


if __name__ == "__main__":
    main()
