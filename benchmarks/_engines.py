"""Two engines on one resident base, timed: TRL one trial after the other, and the packed one. Imports no Ray."""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from _world import random_rows

from rankloom.config import QuantizationConfig, TrainingConfig
from rankloom.hush import hush
from rankloom.training.exchange import Free, LocalExchange, Orders, TrialSpec
from rankloom.training.packed.engine import PackedEngine
from rankloom.training.resident import ResidentBase, load_resident_base
from rankloom.training.trial import peak_memory_bytes, release_memory, reset_peak_memory
from rankloom.training.trl import TrlEngine

MODES = ("sequential", "lane-1", "packed")
Measure = Callable[[str, int], dict[str, Any]]  # mode and seed


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What is trained in each mode.

    Attributes:
        model: Folder of the base.
        training: Of every trial; `eval_steps` is `max_steps`, so that each is evaluated once, at its end.
        quantization: Of the base.
        configurations: The trials, without their seed.
        slots: Of the mode 'packed'.
        eval_rows: Held-out rows.
    """

    model: Path
    training: TrainingConfig
    quantization: QuantizationConfig
    configurations: list[dict[str, Any]]
    slots: int
    eval_rows: int


class Bench:
    """A resident base and its rows; every measurement trains all configurations from their first step."""

    def __init__(self, shape: Shape) -> None:
        hush()
        self._shape = shape
        self._base = load_resident_base(shape.model, shape.quantization, shape.training)
        training = shape.training
        rows = (training.max_steps or 0) * training.per_device_train_batch_size
        vocabulary = self._base.model.config.vocab_size
        self._train = random_rows(rows, training.max_length, vocabulary, seed=1)
        self._held_out = random_rows(shape.eval_rows, training.max_length, vocabulary, seed=2)
        self._warm: set[str] = set()

    def measure(self, mode: str, seed: int) -> dict[str, Any]:
        if mode not in self._warm:  # the first step of a process compiles and allocates
            warm_up = self._shape.training.model_copy(update={"max_steps": 1, "eval_steps": 1})
            self._timed(mode, warm_up, self._specs(seed)[: self._shape.slots])
            self._warm.add(mode)
        return {"mode": mode, "seed": seed, **self._timed(mode, self._shape.training, self._specs(seed))}

    def _specs(self, seed: int) -> list[TrialSpec]:
        return specs_of(self._shape.configurations, seed)

    def _timed(self, mode: str, training: TrainingConfig, specs: list[TrialSpec]) -> dict[str, Any]:
        device = self._base.model.device
        on_gpu = device.type == "cuda"
        exchange = TimedExchange(specs, time.monotonic if on_gpu else time.process_time)
        release_memory()
        reset_peak_memory()
        with tempfile.TemporaryDirectory(prefix="rankloom-benchmark-") as folder:
            engine = build(
                mode,
                base=self._base,
                train=self._train,
                held_out=self._held_out,
                training=training,
                adapters=Path(folder),
                slots=self._shape.slots,
            )
            _finish_kernels(device)
            wall, cpu = time.monotonic(), time.process_time()
            with quiet():
                engine.run(exchange)
            _finish_kernels(device)
            wall_s, cpu_s = time.monotonic() - wall, time.process_time() - cpu
        require_completed(exchange)
        tokens_a_step = training.per_device_train_batch_size * training.max_length
        steps = training.max_steps or 0
        seconds = wall_s if on_gpu else cpu_s
        inside = exchange.seconds_between_steps()
        return {
            "wall_s": wall_s,
            "cpu_s": cpu_s,
            "tokens": len(specs) * steps * tokens_a_step,
            "tokens_per_second": len(specs) * steps * tokens_a_step / seconds,
            "step_tokens_per_second": len(specs) * (steps - 1) * tokens_a_step / inside if inside else None,
            "peak_memory_bytes": peak_memory_bytes(),
            "train_loss": [exchange.losses[spec.trial_id][-1] for spec in specs],
            "eval_loss": [exchange.outcomes[spec.trial_id].metrics["eval_loss"] for spec in specs],
        }


class TimedExchange(LocalExchange):
    """Keeps each trial's losses, and when its first and its last step were done."""

    def __init__(self, specs: list[TrialSpec], clock: Callable[[], float]) -> None:
        super().__init__(specs)
        self._clock = clock
        self._spans: dict[str, tuple[float, float]] = {}
        self.losses: dict[str, list[float]] = {spec.trial_id: [] for spec in specs}

    def orders(self, free: Free, wait_s: float | None) -> Orders:
        orders = super().orders(free, wait_s)
        # As a lane's exchange does; an engine that has empty slots would otherwise ask again and again.
        if wait_s and not (orders.trials or orders.verdicts or orders.over):
            time.sleep(wait_s)
        return orders

    def progress(self, spec: TrialSpec, step: int, train_loss: float) -> None:
        now = self._clock()
        self.losses[spec.trial_id].append(train_loss)
        self._spans[spec.trial_id] = (self._spans.get(spec.trial_id, (now, now))[0], now)

    def seconds_between_steps(self) -> float:
        """Return the time in which some trial was between its first and its last step: no set-up, no evaluation."""
        total, until = 0.0, float("-inf")
        for first, last in sorted(self._spans.values()):
            total += max(0.0, last - max(first, until))
            until = max(until, last)
        return total


def build(
    mode: str,
    *,
    base: ResidentBase,
    train: Any,
    held_out: Any,
    training: TrainingConfig,
    adapters: Path,
    slots: int,
) -> TrlEngine | PackedEngine:
    """Return the engine of a mode."""
    shared: dict[str, Any] = {
        "base": base,
        "train_dataset": train,
        "eval_dataset": held_out,
        "training": training,
        "adapters": adapters,
    }
    if mode == "sequential":
        return TrlEngine(**shared)
    return PackedEngine(**shared, slots=slots if mode == "packed" else 1)


def specs_of(configurations: Sequence[dict[str, Any]], seed: int) -> list[TrialSpec]:
    return [
        TrialSpec(trial_id=f"trial-{number}", number=number, params={**params, "seed": seed})
        for number, params in enumerate(configurations)
    ]


def quiet() -> AbstractContextManager[Any]:
    """Keep what TRL's trainer prints at each step away from the document on stdout."""
    return redirect_stdout(io.StringIO())


def require_completed(exchange: LocalExchange) -> None:
    for trial_id, outcome in exchange.outcomes.items():
        if outcome.status != "completed":
            raise RuntimeError(f"{trial_id} {outcome.status}: {outcome.message}; nothing was measured")


@contextmanager
def measuring(shape: Shape, modes: Sequence[str], *, separate: bool) -> Iterator[Measure]:
    """Yield what measures a mode.

    Args:
        shape: What is trained.
        modes: The modes to come.
        separate: Give each mode a process of its own, which loads the base once and waits while others are measured:
            its peak of memory is then its own. A GPU's peak can be reset, a process's cannot.
    """
    if not separate:
        yield Bench(shape).measure
        return
    with ExitStack() as stack:
        pools = {
            mode: stack.enter_context(
                ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_load, initargs=(shape,))
            )
            for mode in modes
        }
        yield lambda mode, seed: pools[mode].submit(_measure, mode, seed).result()


_bench: Bench | None = None  # of a process that measures one mode


def _load(shape: Shape) -> None:
    global _bench
    _bench = Bench(shape)


def _measure(mode: str, seed: int) -> dict[str, Any]:
    assert _bench is not None
    return _bench.measure(mode, seed)


def _finish_kernels(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
