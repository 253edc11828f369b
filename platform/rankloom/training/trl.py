"""The reference engine: one TRL `SFTTrainer` at a time on the resident base."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import PrinterCallback, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from rankloom.config import TrainingConfig
from rankloom.errors import TrainingError
from rankloom.training.evaluation import evaluate_loss
from rankloom.training.exchange import Exchange, Outcome, TrialSpec
from rankloom.training.resident import ResidentBase
from rankloom.training.trial import (
    arguments,
    failed,
    lora_config,
    peak_memory_bytes,
    release_memory,
    require_finite,
    reset_peak_memory,
    varied,
)


class TrlEngine:
    """Trains the trials of an exchange one after the other; a trial's failure ends that trial only."""

    def __init__(
        self,
        *,
        base: ResidentBase,
        train_dataset: Dataset,
        eval_dataset: Dataset,
        training: TrainingConfig,
        adapters: Path,
    ) -> None:
        """Hold what every trial shares.

        Args:
            base: The resident base.
            train_dataset: Rows of `input_ids` and `labels`.
            eval_dataset: Held-out rows of the same.
            training: Settings that the trials share.
            adapters: Folder under which each trial's adapter is saved as `<trial_id>/`.
        """
        self.base = base
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.training = training
        self.adapters = adapters

    def run(self, exchange: Exchange) -> None:
        """Train every trial that the exchange gives, until it is over."""
        while not (orders := exchange.orders(free=(None,), wait_s=None)).over:
            for spec in orders.trials:
                outcome = self._outcome(spec, exchange)
                if outcome is not None:
                    exchange.finish(spec, outcome)

    def _outcome(self, spec: TrialSpec, exchange: Exchange) -> Outcome | None:
        # Planned fault tolerance: whatever goes wrong inside a trial (out of memory, a NaN, a library's exception) is
        # that trial's outcome; the base is put back and the lane goes on.
        try:
            return self._train(spec, exchange)
        except Exception as error:  # noqa: BLE001
            outcome = failed(error)
        release_memory()
        return outcome

    def _train(self, spec: TrialSpec, exchange: Exchange) -> Outcome | None:
        started = time.monotonic()
        training = varied(self.training, spec.params)
        set_seed(spec.params["seed"])
        with adapted(self.base, lora_config(self.base, spec.params)) as model:
            reset_peak_memory()
            with tempfile.TemporaryDirectory(prefix="rankloom-") as scratch:
                trainer = SFTTrainer(
                    model=model,
                    args=sft_config(training, spec.params, self.base, scratch),
                    train_dataset=self.train_dataset,
                    processing_class=self.base.tokenizer,
                )
                # TRL casts adapters on a quantized base to bfloat16, in which small updates are rounded away; fp32
                # adapters under autocast cost little and are what is saved and merged later.
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.data = parameter.data.float()
                trainer.remove_callback(PrinterCallback)  # stdout is for results
                watch = _Watch(self, model, spec, exchange, training, started)
                trainer.add_callback(watch)
                trainer.train()
            if watch.cut_short:
                return None
            folder = self.adapters / spec.trial_id
            model.save_pretrained(str(folder), safe_serialization=True)
        return Outcome(
            status="stopped" if watch.stopped else "completed",
            metrics={**watch.metrics, "wall_s": time.monotonic() - started},
            adapter=folder,
        )


class _Watch(TrainerCallback):
    """Evaluates, reports and stops a trial from inside the trainer's loop."""

    def __init__(
        self,
        engine: TrlEngine,
        model: PeftModel,
        spec: TrialSpec,
        exchange: Exchange,
        training: TrainingConfig,
        started: float,
    ) -> None:
        self._engine = engine
        self._model = model
        self._spec = spec
        self._exchange = exchange
        self._training = training
        self._started = started
        self._losses: list[float] = []
        self.metrics: dict[str, Any] = {}
        self.stopped = False
        self.cut_short = False

    # on_log rather than on_step_end: it follows it, and carries the step's loss, gradient norm and learning rate.
    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if not logs or "loss" not in logs:
            return
        step, loss = state.global_step, float(logs["loss"])
        require_finite("train_loss", loss, step)
        require_finite("grad_norm", float(logs["grad_norm"]), step)
        self._losses.append(loss)
        self._exchange.progress(self._spec, step, loss)
        if not self._training.evaluates_at(step, state.max_steps):
            return
        eval_loss = evaluate_loss(
            self._model,
            self._engine.eval_dataset,
            batch_size=self._training.per_device_eval_batch_size,
            autocast_dtype=self._engine.base.compute_dtype,
        ).loss
        require_finite("eval_loss", eval_loss, step)
        self.metrics = {
            "steps": step,
            "epoch": state.epoch,
            "eval_loss": eval_loss,
            "train_loss": sum(self._losses) / len(self._losses),
            "learning_rate": float(logs["learning_rate"]),
            "grad_norm": float(logs["grad_norm"]),
            "train_tokens": int(logs.get("num_tokens", 0)),
            "peak_memory_bytes": peak_memory_bytes(),
            "wall_s": time.monotonic() - self._started,
        }
        self._losses.clear()
        # The last evaluation travels with the outcome: there is nothing left to decide about it.
        if step < state.max_steps and self._is_to_stop():
            control.should_training_stop = True

    def _is_to_stop(self) -> bool:
        """Report the evaluation and wait for what is decided about it."""
        self._exchange.report([(self._spec, dict(self.metrics))])
        while True:
            orders = self._exchange.orders(free=(), wait_s=None)
            verdict = orders.verdicts.get(self._spec.trial_id)
            if verdict == "pause":  # a trainer's state is nowhere kept
                raise TrainingError("the scheduler pauses trials, which engine 'trl' cannot: set engine to 'packed'")
            self.stopped, self.cut_short = verdict == "stop", orders.over and verdict is None
            if verdict is not None or orders.over:
                return self.stopped or self.cut_short


@contextlib.contextmanager
def adapted(base: ResidentBase, config: LoraConfig) -> Iterator[PeftModel]:
    """Inject a fresh adapter into the resident base for a while, and leave the base as it was.

    TRL replaces the model's `forward` for its fused head each time a trainer is made, and with gradient checkpointing
    PEFT and TRL each hook the embedding; taking both off keeps a hundred trials from leaving a hundred of them.
    """
    forward = base.model.__dict__.get("forward")
    hooks = base.model.get_input_embeddings()._forward_hooks
    kept = set(hooks)
    try:
        yield get_peft_model(base.model, config)
    finally:
        # Not `PeftModel.unload()`: where memory ran out in the middle of the injection, there is no PeftModel.
        for name, module in list(base.model.named_modules()):
            if isinstance(module, BaseTunerLayer):
                base.model.set_submodule(name, module.get_base_layer())
        for hook in hooks.keys() - kept:
            del hooks[hook]
        if forward is None:
            base.model.__dict__.pop("forward", None)
        else:
            base.model.forward = forward
        # PEFT leaves its bookkeeping on the model it wrapped, and warns about it at the next adapter.
        for leftover in ("peft_config", "_hf_peft_config_loaded"):
            base.model.__dict__.pop(leftover, None)
        base.model.requires_grad_(False)


def sft_config(training: TrainingConfig, params: dict[str, Any], base: ResidentBase, scratch: str) -> SFTConfig:
    """Build TRL's configuration of a trial."""
    return SFTConfig(
        **arguments(training, params, base, scratch),
        max_length=training.max_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        logging_strategy="steps",
        logging_steps=1,
        logging_nan_inf_filter=False,
        eval_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        dataloader_pin_memory=base.model.device.type == "cuda",
    )
