"""Public benchmarks by EleutherAI's lm-eval, on the model in memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from rankloom.errors import ConfigError, DataError

if TYPE_CHECKING:
    from rankloom.training.resident import ResidentBase

OnTask = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFigures:
    """What a model reached.

    Attributes:
        metrics: `TASK.METRIC`, and `TASK.METRIC_stderr` where there is one.
        by_document: Values of a metric of the tasks that were asked for, document by document, by `TASK.METRIC`.
        higher_is_better: By `TASK.METRIC`.
    """

    metrics: Mapping[str, float]
    by_document: Mapping[str, list[float]]
    higher_is_better: Mapping[str, bool]


def tasks_installed() -> bool:
    """Return whether lm-eval is there."""
    return importlib.util.find_spec("lm_eval") is not None


def check_tasks(tasks: Sequence[str], folder: str | None = None) -> None:
    """See that tasks can be run, before anything is loaded for them.

    Args:
        tasks: Their names.
        folder: A folder with more of them, as YAML files.

    Raises:
        ConfigError: lm-eval is not installed, or knows no such task.
    """
    if not tasks_installed():
        raise ConfigError(f"the tasks {', '.join(tasks)} need lm-eval: pip install 'rankloom[eval]'")
    known = set(_manager(folder).all_tasks)
    if unknown := [task for task in tasks if task not in known]:
        raise ConfigError(
            f"lm-eval knows no task {unknown[0]!r}: list them with `lm-eval ls tasks`, or name the folder of its YAML "
            "file with --tasks-folder"
        )


def run_tasks(
    model: Any,
    resident: ResidentBase,
    tasks: Sequence[str],
    *,
    folder: str | None,
    limit: int | None,
    batch_size: int,
    on_task: OnTask,
) -> TaskFigures:
    """Run tasks with the settings that lm-eval gives them, without a chat template, so that figures compare.

    Args:
        model: The resident base, with or without an adapter on it.
        resident: That base.
        tasks: Names of tasks or groups of tasks.
        folder: A folder with more of them.
        limit: Documents a task at most.
        batch_size: Documents a forward pass.
        on_task: Called with (a task, 0 or 1, 1) before and after it.

    Raises:
        DataError: The data of a task cannot be had.
    """
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM

    from rankloom.training.evaluation import autocast, evaluating

    metrics: dict[str, float] = {}
    by_document: dict[str, list[float]] = {}
    higher: dict[str, bool] = {}
    manager = _manager(folder)
    device = next(model.parameters()).device
    for task in tasks:
        on_task(task, 0, 1)
        with evaluating(model), torch.no_grad(), autocast(device, resident.compute_dtype):
            wrapped = HFLM(pretrained=model, tokenizer=resident.tokenizer, batch_size=batch_size)
            try:
                found: Any = simple_evaluate(
                    wrapped, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=1000
                )
            except (OSError, ValueError, KeyError) as error:
                reason = " ".join(str(error).split())[:300]
                raise DataError(
                    f"the task {task!r} cannot be run ({type(error).__name__}: {reason}); its data comes from the hub "
                    "unless it is on this machine"
                ) from error
        for name, values in (found["results"] | found.get("groups", {})).items():
            metrics |= {f"{name}.{_plain(key)}": value for key, value in values.items() if _is_figure(key, value)}
        for metric, better in found["higher_is_better"].get(task, {}).items():
            if better is None:
                continue
            for name, numbers in document_values(found.get("samples", {}).get(task, []), metric).items():
                by_document[f"{task}.{name}"] = numbers
                higher[f"{task}.{name}"] = bool(better)
        on_task(task, 1, 1)
    return TaskFigures(metrics=metrics, by_document=by_document, higher_is_better=higher)


def document_values(samples: Sequence[Mapping[str, Any]], metric: str) -> dict[str, list[float]]:
    """Collect a metric document by document, each way of filtering answers by itself: lm-eval logs a document in each.

    Args:
        samples: As lm-eval logs them.
        metric: Its name.

    Returns:
        Values by the metric and how answers were filtered; none of a metric that is no number of a document.
    """
    found: dict[str, list[Any]] = {}
    for sample in samples:
        if metric in sample:
            found.setdefault(_plain(f"{metric},{sample.get('filter', 'none')}"), []).append(sample[metric])
    return {
        name: [float(value) for value in values]
        for name, values in found.items()
        if all(isinstance(value, int | float) for value in values)
    }


@lru_cache(maxsize=2)  # it reads thousands of files
def _manager(folder: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=folder)


def _is_figure(key: str, value: Any) -> bool:
    return "," in key and isinstance(value, int | float) and not isinstance(value, bool)


def _plain(key: str) -> str:
    """'acc,none' is the metric and how answers were filtered."""
    metric, _, filtered = key.partition(",")
    return metric if filtered == "none" else f"{metric}.{filtered}"
