"""The packed engine: many trials at once on one resident base, each beginning and ending when it likes."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset

from rankloom.config import TrainingConfig
from rankloom.errors import TrainingError
from rankloom.tokens import IGNORED
from rankloom.training.exchange import Exchange, Orders, Outcome, Status, TrialSpec
from rankloom.training.packed.checkpoint import read_state, write_state
from rankloom.training.packed.layout import Row
from rankloom.training.packed.model import PackedModel
from rankloom.training.packed.slot import Slot
from rankloom.training.resident import ResidentBase
from rankloom.training.trial import failed, peak_memory_bytes, release_memory, reset_peak_memory

# Ray Tune answers within some 20 ms, and then trials stay in step with each other; but a scheduler that waits for
# other trials must not hold up the neighbours.
PATIENCE_S = 0.25


class PackedEngine:
    """Trains the trials of an exchange in the slots of one resident base."""

    def __init__(
        self,
        *,
        base: ResidentBase,
        train_dataset: Dataset,
        eval_dataset: Dataset,
        training: TrainingConfig,
        adapters: Path,
        slots: int,
        checkpoints: Path | None = None,
        grouped: bool | None = None,
    ) -> None:
        """Hold what every trial shares.

        Args:
            base: The resident base.
            train_dataset: Rows of `input_ids` and `labels`.
            eval_dataset: Held-out rows of the same.
            training: Settings that the trials share.
            adapters: Folder under which each trial's adapter is saved as `<trial_id>/`.
            slots: Trials trained at once.
            checkpoints: Folder in which a trial's state is kept until it ends, as `<trial_id>.safetensors`; a trial
                whose state lies there goes on from it. None keeps none.
            grouped: See `PackedModel`.
        """
        self.base = base
        self.training = training
        self.adapters = adapters
        self.slots = slots
        self.checkpoints = checkpoints
        self.grouped = grouped
        self._train_rows = rows_of(train_dataset)
        # Rows of like length are evaluated together; the mean knows no order.
        self._eval_rows = sorted(rows_of(eval_dataset), key=lambda row: len(row[0]))
        self._eval_targets = sum(map(targets_of, self._eval_rows))
        self._hands: list[Slot] = []  # trials in hand, in order of admission
        self._width = slots  # how many of them run at once

    def run(self, exchange: Exchange) -> None:
        """Train every trial that the exchange gives, until it is over."""
        self._model = PackedModel(self.base, grouped=self.grouped)
        reset_peak_memory()
        patience = 0.0
        try:
            with tempfile.TemporaryDirectory(prefix="rankloom-") as scratch:
                while True:
                    running = [slot for slot in self._hands if not slot.waiting][: self._width]
                    short = len(running) < self._width
                    rest = patience - time.monotonic() if short else 0.0
                    orders = exchange.orders(self._free(), max(0.0, rest) if running else None)
                    if orders.over:
                        return
                    self._obey(orders, exchange)
                    for spec in orders.trials:
                        self._admit(spec, exchange, Path(scratch))
                    if orders.trials or orders.verdicts:
                        patience = time.monotonic() + PATIENCE_S * orders.more
                    elif running and rest <= 0:
                        self._advance(running, exchange)
                        if any(slot.waiting for slot in running):  # it has just reported
                            patience = time.monotonic() + PATIENCE_S
        finally:
            self._hands.clear()
            self._model.close()

    # Trials come and go

    def _free(self) -> list[int]:
        """Return the slots in which trials may begin: fewer than are empty after a pass of many has failed."""
        taken = {slot.spec.slot for slot in self._hands}
        empty = [index for index in range(self.slots) if index not in taken]
        return empty[: max(0, self._width - len(self._hands))]

    def _admit(self, spec: TrialSpec, exchange: Exchange, scratch: Path) -> None:
        # Planned fault tolerance: what one trial's configuration does wrong is that trial's outcome.
        try:
            slot = Slot(spec, self.base, self.training, len(self._train_rows), scratch)
            if (state := self._state_of(spec)) is not None and state.is_file():
                slot.restore(*read_state(state))
        except Exception as error:  # noqa: BLE001
            outcome = failed(error)
        else:
            self._hands.append(slot)
            if slot.step > spec.decided:  # its last evaluation was not answered
                self._report([slot], exchange)
            return
        release_memory()
        exchange.finish(spec, outcome)

    def _obey(self, orders: Orders, exchange: Exchange) -> None:
        told = [slot for slot in self._hands if slot.spec.trial_id in orders.verdicts]
        stopped = [slot for slot in told if orders.verdicts[slot.spec.trial_id] == "stop"]
        # What is recorded must have been measured on what is saved, wherever a trial was when it was stopped.
        self._measure([slot for slot in stopped if slot.step != slot.metrics.get("steps", 0)], exchange)
        for slot in told:
            slot.waiting = False
            if orders.verdicts[slot.spec.trial_id] == "pause":  # its state is kept, and it comes back with it
                if self.checkpoints is None:
                    raise TrainingError("trials can be paused only where a folder for their checkpoints is given")
                self._hands.remove(slot)
            elif slot in stopped and slot in self._hands:
                self._end(slot, "stopped", exchange)

    def _end(self, slot: Slot, status: Status, exchange: Exchange) -> None:
        folder = self.adapters / slot.spec.trial_id
        if slot.metrics:
            slot.save_adapter(folder)
        self._leave(
            slot, Outcome(status=status, metrics=slot.metrics, adapter=folder if slot.metrics else None), exchange
        )

    def _fail(self, slot: Slot, outcome: Outcome, exchange: Exchange) -> None:
        self._leave(slot, outcome, exchange)
        release_memory()

    def _leave(self, slot: Slot, outcome: Outcome, exchange: Exchange) -> None:
        self._hands.remove(slot)
        exchange.finish(slot.spec, outcome)
        if (state := self._state_of(slot.spec)) is not None:
            state.unlink(missing_ok=True)

    def _report(self, slots: Sequence[Slot], exchange: Exchange) -> None:
        if slots:
            for slot in slots:
                slot.waiting = True
            exchange.report([(slot.spec, dict(slot.metrics)) for slot in slots])

    def _state_of(self, spec: TrialSpec) -> Path | None:
        return None if self.checkpoints is None else self.checkpoints / f"{spec.trial_id}.safetensors"

    # All slots at once

    def _advance(self, running: Sequence[Slot], exchange: Exchange) -> None:
        """Train one batch of each slot; those whose step is full take it, and are evaluated where that is due."""
        work, last = [], []
        for slot in running:
            window = [[self._train_rows[index] for index in batch] for batch in slot.batches.of_step(slot.step)]
            work.append((slot, window[slot.micro], sum(targets_of(row) for batch in window for row in batch)))
            last.append(slot.micro == len(window) - 1)
        # Planned fault tolerance: where a pass of several trials fails, memory most of all, they go back to their last
        # step and go on with half as many at once, until the one that cannot run is alone.
        outcome: Outcome | None = None
        try:
            losses = self._model.train(work)
        except Exception as error:  # noqa: BLE001
            outcome = failed(error)
        # Not in the handler, where the exception still holds the tensors of the pass.
        if outcome is not None:
            self._retreat(running, outcome, exchange)
            return
        stepped = []
        for (slot, rows, _), loss, is_full in zip(work, losses, last, strict=True):
            slot.add_loss(loss, sum(len(ids) for ids, _ in rows))
            if not is_full:
                continue
            # Planned fault tolerance: a loss that is not finite, or no memory for the optimizer's state.
            try:
                mean = slot.take_step()
            except Exception as error:  # noqa: BLE001
                outcome = failed(error)
            else:
                stepped.append(slot)
                exchange.progress(slot.spec, slot.step, mean)
                continue
            self._fail(slot, outcome, exchange)
        due = [slot for slot in stepped if slot.is_due]
        self._measure(due, exchange)
        due = [slot for slot in due if slot in self._hands]
        going = [slot for slot in due if slot.step < slot.max_steps]
        for slot in due:
            if slot not in going:
                self._end(slot, "completed", exchange)
            elif (state := self._state_of(slot.spec)) is not None:
                write_state(state, slot.state())
        self._report(going, exchange)

    def _retreat(self, running: Sequence[Slot], outcome: Outcome, exchange: Exchange) -> None:
        """Put trials back to their last step after a pass that failed, and try fewer; one that was alone has failed."""
        release_memory()
        for slot in running:
            slot.rewind()
        if len(running) > 1:
            self._width = len(running) // 2
        else:
            self._fail(running[0], outcome, exchange)
            self._width = self.slots

    def _measure(self, due: Sequence[Slot], exchange: Exchange) -> None:
        """Evaluate some slots together; one that cannot be evaluated fails alone."""
        if not due:
            return
        sums: list[list[float]] = [[] for _ in due]
        size = self.training.per_device_eval_batch_size
        # Planned fault tolerance, as in training.
        try:
            for start in range(0, len(self._eval_rows), size):
                rows = self._eval_rows[start : start + size]
                for nll, more in zip(sums, self._model.nll([(slot, rows) for slot in due]), strict=True):
                    nll += more
        except Exception as error:  # noqa: BLE001
            outcome = failed(error)
        else:
            for slot, nll in zip(due, sums, strict=True):
                try:
                    slot.measured(math.fsum(nll) / self._eval_targets, peak_memory_bytes())
                except TrainingError as error:
                    self._fail(slot, failed(error), exchange)
            return
        release_memory()
        if len(due) == 1:
            self._fail(due[0], outcome, exchange)
            return
        self._measure(due[: len(due) // 2], exchange)
        self._measure(due[len(due) // 2 :], exchange)


def rows_of(dataset: Dataset) -> list[Row]:
    """Return a dataset's rows as token ids and labels."""
    return [(row["input_ids"], row["labels"]) for row in dataset]


def targets_of(row: Row) -> int:
    """Return how many tokens of a row carry loss; the first is never predicted."""
    return sum(label != IGNORED for label in row[1][1:])
