"""A slot: one trial's adapter, optimizer, schedule and place in its data, apart from all others."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler

from rankloom.config import TrainingConfig
from rankloom.training.exchange import TrialSpec
from rankloom.training.packed.batches import Batches
from rankloom.training.packed.factors import LowRank, Wearer, product_dtype
from rankloom.training.resident import ResidentBase
from rankloom.training.trial import arguments, lora_config, require_finite, varied

# Optimizers that treat each number by itself, so that an adapter may lie in one flat tensor.
ELEMENTWISE = (
    "adamw_torch", "adamw_torch_fused", "paged_adamw_32bit", "ademamix", "paged_ademamix_32bit",
    "lion_32bit", "paged_lion_32bit", "adagrad", "rmsprop", "sgd",
)  # fmt: skip


class Slot:
    """A trial in training.

    The adapter lies in one flat fp32 tensor, with a gradient of the same shape: an optimizer step, a clipping norm or a
    checkpoint is then one operation, not one for each of hundreds of matrices. Nothing here draws from a shared random
    generator: data order and dropout follow from the seed and the step alone.
    """

    def __init__(self, spec: TrialSpec, base: ResidentBase, training: TrainingConfig, rows: int, scratch: Path) -> None:
        """Make a fresh adapter and its optimizer.

        Args:
            spec: The trial.
            base: The resident base.
            training: Settings that the trials share.
            rows: Training rows.
            scratch: A folder that transformers asks for; nothing is kept there.

        Raises:
            RankloomError: A setting breaks a rule.
            SpaceError: The base has no such target modules.
            torch.OutOfMemoryError: The adapter is too large.
        """
        self.spec = spec
        self.training = varied(training, spec.params)
        self.config: LoraConfig = lora_config(base, spec.params)
        self.dropout = float(self.config.lora_dropout)
        self.batches = Batches(
            rows=rows,
            batch_size=self.training.per_device_train_batch_size,
            accumulation=self.training.gradient_accumulation_steps,
            seed=spec.params["seed"],
        )
        epochs = self.training.num_train_epochs
        self.max_steps = self.training.max_steps or math.ceil(epochs * self.batches.steps_per_epoch)
        names = _targeted(base, self.config.target_modules or ())
        self._shapes = {name: _features(base.model.get_submodule(name)) for name in names}
        r = self.config.r
        device = base.model.device
        self.flat = nn.Parameter(
            torch.zeros(sum(r * (ins + outs) for ins, outs in self._shapes.values()), device=device)
        )
        self.flat.grad = torch.zeros_like(self.flat)
        # Where products run in another dtype, it is on a copy that follows the fp32 values after each step.
        dtype = product_dtype(device, base.compute_dtype)
        self._low = self.flat.detach() if dtype == torch.float32 else self.flat.detach().to(dtype)
        self.factors = self._views()
        self._initialise(spec.params["seed"])
        options = TrainingArguments(**arguments(self.training, spec.params, base, str(scratch)))
        optimizer_class, optimizer_options = Trainer.get_optimizer_cls_and_kwargs(options)
        groups = [{"params": [self.flat], "weight_decay": self.training.weight_decay}]
        self.optimizer: torch.optim.Optimizer = optimizer_class(groups, **optimizer_options)
        self.schedule = get_scheduler(
            options.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=options.get_warmup_steps(self.max_steps),
            num_training_steps=self.max_steps,
        )
        self.step = 0  # optimizer steps taken
        self.micro = 0  # batches of the current step that are done
        self.train_tokens = 0
        self.metrics: dict[str, Any] = {}
        self.waiting = False  # for a verdict
        self._window_loss = torch.zeros((), device=device)
        self._window_seen = 0
        self._losses: list[float] = []
        self._rate = self._grad_norm = 0.0
        self._began = time.monotonic()

    # Training

    def wearer(self, span: Any, *, training: bool) -> Wearer:
        """Return the adapter as tokens wear it: with its dropout mask of this batch, or without one."""
        dropout = self.dropout if training else 0.0
        seed = (self.spec.params["seed"] * 1_000_003 + self.step) * 4099 + self.micro
        return Wearer(span, self.factors, dropout, seed)

    def add_loss(self, nll: torch.Tensor, tokens: int) -> None:
        """Take in a batch: its summed loss over the step's number of targets, and its tokens."""
        self._window_loss += nll
        self._window_seen += tokens
        self.micro += 1

    def take_step(self) -> float:
        """Clip, update, and move the learning rate on.

        Returns:
            The step's mean training loss, nats a token.

        Raises:
            TrainingError: The loss or the gradient norm is not finite; nothing was updated.
        """
        loss = float(self._window_loss)
        require_finite("train_loss", loss, self.step + 1)
        norm = float(nn.utils.clip_grad_norm_([self.flat], self.training.max_grad_norm))
        require_finite("grad_norm", norm, self.step + 1)
        self._rate, self._grad_norm = float(self.schedule.get_last_lr()[0]), norm
        self.optimizer.step()
        self.schedule.step()
        self.step += 1
        self.train_tokens += self._window_seen
        self._losses.append(loss)
        self._follow()
        self.rewind()
        return loss

    def rewind(self) -> None:
        """Go back to the last step: what a step under way has gathered is forgotten."""
        assert self.flat.grad is not None
        self.flat.grad.zero_()
        self._window_loss.zero_()
        self._window_seen = self.micro = 0

    @property
    def is_due(self) -> bool:
        """Whether the step just taken is one after which the adapter is evaluated."""
        return self.training.evaluates_at(self.step, self.max_steps)

    def measured(self, eval_loss: float, peak_memory_bytes: int) -> dict[str, Any]:
        """Take in an evaluation and return the metrics to report.

        Raises:
            TrainingError: The loss is not finite.
        """
        require_finite("eval_loss", eval_loss, self.step)
        self.metrics = {
            "steps": self.step,
            "epoch": self.step / self.batches.steps_per_epoch,
            "eval_loss": eval_loss,
            "train_loss": math.fsum(self._losses) / len(self._losses),
            "learning_rate": self._rate,
            "grad_norm": self._grad_norm,
            "train_tokens": self.train_tokens,
            "peak_memory_bytes": peak_memory_bytes,
            "wall_s": time.monotonic() - self._began,
        }
        self._losses.clear()
        return dict(self.metrics)

    # What lies on disk

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter as PEFT does: `adapter_config.json` and `adapter_model.safetensors`, fp32."""
        folder.mkdir(parents=True, exist_ok=True)
        config = copy.copy(self.config)
        config.inference_mode = True
        # PEFT keeps a set, whose order is another in each process: equal adapters should be equal files.
        config.target_modules = sorted(config.target_modules or ())
        config.save_pretrained(str(folder))
        tensors = {}
        for name, (a, b) in self._matrices(self.flat.detach()).items():
            tensors[f"base_model.model.{name}.lora_A.weight"] = a.contiguous().cpu()
            tensors[f"base_model.model.{name}.lora_B.weight"] = b.contiguous().cpu()
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return all that the rest of the trial depends on, as tensors and as JSON-ready values."""
        tensors = {"adapter": self.flat.detach()}
        values: dict[str, Any] = {}
        for name, value in self.optimizer.state[self.flat].items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimizer.{name}"] = value
            else:
                values[name] = value
        record = {
            "trial_id": self.spec.trial_id,
            "params": self.spec.params,
            "step": self.step,
            "train_tokens": self.train_tokens,
            "metrics": self.metrics,
            "optimizer": values,
            "wall_s": time.monotonic() - self._began,
        }
        return tensors, json.loads(json.dumps(record))

    def restore(self, tensors: Mapping[str, torch.Tensor], record: Mapping[str, Any]) -> None:
        """Go on from a state; it may be another trial's of the same shape.

        Raises:
            ValueError: The adapter in it has another number of elements.
        """
        if tensors["adapter"].shape != self.flat.shape:
            raise ValueError(
                f"the checkpoint holds an adapter of {tensors['adapter'].numel()} elements, this trial's has "
                f"{self.flat.numel()}: a trial can go on only with the r and target_modules that it began with"
            )
        with torch.no_grad():
            self.flat.copy_(tensors["adapter"])
        state = dict(record["optimizer"])
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                state[name.removeprefix("optimizer.")] = tensor.to(self.flat.device) if tensor.ndim else tensor.clone()
        self.optimizer.state[self.flat] = state
        self.step = int(record["step"])
        self.train_tokens = int(record["train_tokens"])
        self.metrics = dict(record["metrics"])
        self._began = time.monotonic() - float(record["wall_s"])
        # The schedule is a function of the step; transformers' are all of this kind.
        self.schedule.last_epoch = self.step
        for group, initial, rate in zip(
            self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
        ):
            group["lr"] = initial * rate(self.step)
        self.schedule._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        self._follow()

    # Inside

    def _follow(self) -> None:
        if self._low.dtype != torch.float32:
            self._low.copy_(self.flat.detach())

    def _matrices(self, flat: torch.Tensor) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        r, start, matrices = self.config.r, 0, {}
        for name, (ins, outs) in self._shapes.items():
            middle, end = start + r * ins, start + r * (ins + outs)
            matrices[name] = flat[start:middle].view(r, ins), flat[middle:end].view(outs, r)
            start = end
        return matrices

    def _views(self) -> dict[str, LowRank]:
        assert self.flat.grad is not None
        low, grads = self._matrices(self._low), self._matrices(self.flat.grad)
        r, alpha = self.config.r, self.config.lora_alpha
        scaling = alpha / (math.sqrt(r) if self.config.use_rslora else r)
        return {name: LowRank(*low[name], *grads[name], scaling) for name in low}

    def _initialise(self, seed: int) -> None:
        """Draw A as PEFT does for the same seed: `nn.Linear` draws for both matrices before A is drawn; B is zero."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for a, b in self._matrices(self.flat.detach()).values():
                (r, ins), outs = a.shape, b.shape[0]
                nn.Linear(ins, r, bias=False)
                nn.Linear(r, outs, bias=False)
                a.copy_(nn.init.kaiming_uniform_(torch.empty(r, ins), a=math.sqrt(5)))
        self._follow()


def _targeted(base: ResidentBase, suffixes: Iterable[str]) -> list[str]:
    """Return the modules that PEFT would adapt, in the order in which it goes through them."""
    ends = tuple(f".{suffix}" for suffix in suffixes)
    return [name for name in base.leaf_modules if f".{name}".endswith(ends)]


def _features(module: nn.Module) -> tuple[int, int]:
    """Return a linear layer's input and output widths; Conv1D has its own names."""
    if hasattr(module, "in_features"):
        return int(module.in_features), int(module.out_features)  # type: ignore[arg-type]
    ins, outs = module.weight.shape  # type: ignore[misc]
    return int(ins), int(outs)
