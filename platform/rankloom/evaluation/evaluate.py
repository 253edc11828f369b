"""Measure registered adapters on their own base, and the base beside them, on the same rows; record what was found."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal, get_args

from rankloom.errors import ConfigError, DataError
from rankloom.evaluation.base import BASE, SharedBase
from rankloom.evaluation.bootstrap import mean_interval
from rankloom.evaluation.report import MOST_TEXT, Report, Row, RowResult, Subject, report_file, save_report
from rankloom.evaluation.rows import HeldOut, as_text, held_out_rows, question_of, whole_text
from rankloom.evaluation.scores import exact_match, rouge_l
from rankloom.tokens import encode_prompt
from rankloom_registry import Registry

if TYPE_CHECKING:
    from rankloom.evaluation.significance import Comparison
    from rankloom.evaluation.tasks import TaskFigures
    from rankloom.training.evaluation import Evaluation

OnProgress = Callable[[str, int, int], None]
Metric = Literal["loss", "exact_match", "rouge_l"]
METRICS: tuple[Metric, ...] = get_args(Metric)
GENERATED: tuple[Metric, ...] = ("exact_match", "rouge_l")  # those that need the models to write
MAX_NEW_TOKENS = 128


def evaluate(
    registry: Registry,
    refs: Sequence[str],
    *,
    dataset: Any = None,
    metrics: Sequence[str] = ("loss",),
    tasks: Sequence[str] = (),
    tasks_folder: str | None = None,
    base: str | None = None,
    base_too: bool = True,
    max_new_tokens: int = MAX_NEW_TOKENS,
    limit: int | None = None,
    samples: int = 0,
    on_batch: OnProgress | None = None,
) -> Report:
    """Measure adapters on one resident base, and record it.

    Args:
        registry: Where they are registered.
        refs: One adapter or more of one base: ids, names or name@alias.
        dataset: Rows as a search takes them; by default the held-out split of the adapters' search.
        metrics: Of `METRICS`: 'loss', and 'exact_match' and 'rouge_l' of what is generated greedily from each row's
            prompt; none if only tasks are wanted.
        tasks: Names of lm-eval's tasks; need `rankloom[eval]`.
        tasks_folder: A folder with more of these, as YAML files.
        base: Where the base is now, if it moved.
        base_too: Whether to measure the base alone as well, and to compare with it.
        max_new_tokens: Tokens to generate at most.
        limit: Rows, and documents of each task, to measure at most: the first ones.
        samples: From how many of the rows with a prompt to generate where no metric needs it, for people to read.
        on_batch: Called with (what is measured, rows done, rows in all).

    Returns:
        What was found; its rows are kept beside the registry, too.

    Raises:
        RankloomError: The base is not the adapters', or the dataset, a metric or a task cannot be used.
        RegistryError: There is no such adapter, or its files are gone or changed.
    """
    metrics, tasks = tuple(dict.fromkeys(metrics)), tuple(dict.fromkeys(tasks))
    _check_wishes(refs, metrics, tasks, {"max_new_tokens": max_new_tokens, "limit": limit, "samples": samples})
    if tasks:
        from rankloom.evaluation.tasks import check_tasks, run_tasks

        check_tasks(tasks, tasks_folder)
    shared = SharedBase(registry, refs, base=base)
    held_out = _rows(registry, shared, dataset, metrics, limit) if metrics else None
    shared.load()
    tell = on_batch or (lambda what, done, total: None)
    subjects = [*([BASE] if base_too else []), *(adapter.adapter_id for adapter in shared.adapters)]
    names = {BASE: BASE} | {adapter.adapter_id: adapter.name for adapter in shared.adapters}
    labels = names | ({} if len(shared.adapters) == 1 else {one.adapter_id: one.adapter_id for one in shared.adapters})
    measured: dict[str, list[RowResult]] = {}
    figures: dict[str, dict[str, float | int | None]] = {subject: {} for subject in subjects}
    in_tasks: dict[str, TaskFigures] = {}
    for subject in subjects:
        told = partial(_told, tell, labels[subject])
        if held_out is not None:
            measured[subject], figures[subject] = _measure(
                shared, subject, held_out, metrics, max_new_tokens, samples, told
            )
        if tasks:
            with shared.active(subject) as model:
                in_tasks[subject] = run_tasks(
                    model,
                    shared.resident,
                    tasks,
                    folder=tasks_folder,
                    limit=limit,
                    batch_size=shared.config.training.per_device_eval_batch_size,
                    on_task=told,
                )
            figures[subject] |= in_tasks[subject].metrics
    shared.assert_unchanged()
    report = Report(
        run=secrets.token_hex(6),
        base_content_root=shared.adapters[0].base_content_root,
        dataset=_dataset(held_out, tasks, limit),
        max_new_tokens=max_new_tokens,
        subjects=tuple(Subject(subject=one, name=names[one], metrics=figures[one]) for one in subjects),
        comparisons=_comparisons(subjects, measured, metrics, in_tasks, tell),
        rows=_kept_rows(held_out, measured),
    )
    save_report(report, registry.path)
    try:
        registry.record(*report.events())
    # Planned: whatever keeps it from being recorded, Ctrl-C too, leaves no stray rows, and is raised again.
    except BaseException:
        report_file(registry.path, report.run).unlink(missing_ok=True)
        raise
    return report


def _check_wishes(
    refs: Sequence[str], metrics: Sequence[str], tasks: Sequence[str], numbers: Mapping[str, int | None]
) -> None:
    if not refs:
        raise ConfigError("an evaluation needs an adapter: name one or more")
    if unknown := [metric for metric in metrics if metric not in METRICS]:
        raise ConfigError(f"a metric is one of {', '.join(METRICS)}, got {unknown[0]!r}; choose another")
    if not metrics and not tasks:
        raise ConfigError("an evaluation needs a metric or a task: name one or more")
    for name, value in numbers.items():
        least = 0 if name == "samples" else 1
        if value is not None and value < least:
            raise ConfigError(f"{name} must be at least {least}, got {value}")


def _rows(registry: Registry, shared: SharedBase, dataset: Any, metrics: Sequence[str], limit: int | None) -> HeldOut:
    searches = {adapter.search_id for adapter in shared.adapters}
    if dataset is None and len(searches) > 1:
        raise DataError(
            "the adapters come from different searches, each of which may have trained on what another held out: "
            "give --dataset FILE"
        )
    held_out = held_out_rows(registry, shared.adapters[0], dataset, shared.base).first(limit)
    wanted = [metric for metric in metrics if metric in GENERATED]
    if wanted and not any(map(question_of, held_out.rows)):
        raise DataError(
            f"{' and '.join(wanted)} need rows with an answer (prompt and completion, or messages that end with the "
            f"assistant's), and {held_out.source} has none: measure the loss alone"
        )
    return held_out


def _measure(
    shared: SharedBase,
    subject: str,
    held_out: HeldOut,
    metrics: Sequence[str],
    max_new_tokens: int,
    samples: int,
    told: OnProgress,
) -> tuple[list[RowResult], dict[str, float | int | None]]:
    """One model on all rows: each by itself, and in all."""
    from rankloom.evaluation.generation import generate_greedily
    from rankloom.training.evaluation import evaluate_loss

    batch_size = shared.config.training.per_device_eval_batch_size
    questions = [question_of(row) for row in held_out.rows]
    asked = [place for place, question in enumerate(questions) if question is not None]
    scored = any(metric in GENERATED for metric in metrics)
    asked = asked if scored else asked[:samples]
    tokenizer = shared.resident.tokenizer
    prompts = [encode_prompt(question[0], tokenizer) for place in asked if (question := questions[place])]
    measured: Evaluation | None = None
    texts: dict[int, str] = {}
    with shared.active(subject) as model:
        if "loss" in metrics:
            measured = evaluate_loss(
                model,
                held_out.tokens,
                batch_size=batch_size,
                autocast_dtype=shared.resident.compute_dtype,
                on_batch=partial(told, "loss"),
            )
        if asked:
            said = generate_greedily(
                model,
                shared.resident,
                prompts,
                max_new_tokens=max_new_tokens,
                batch_size=batch_size,
                on_batch=partial(told, "text"),
            )
            texts = dict(zip(asked, said, strict=True))
    results = []
    for place, question in enumerate(questions):
        text = texts.get(place)
        answer = question[1] if question is not None else ""
        results.append(
            RowResult(
                loss=None if measured is None else measured.row_nll[place] / measured.row_tokens[place],
                tokens=0 if measured is None else measured.row_tokens[place],
                text=text,
                exact_match=exact_match(text, answer) if text is not None and "exact_match" in metrics else None,
                rouge_l=rouge_l(text, answer) if text is not None and "rouge_l" in metrics else None,
            )
        )
    figures: dict[str, float | int | None] = {}
    if measured is not None:
        low, high = mean_interval(measured.row_nll, measured.row_tokens) or (None, None)
        figures |= {
            "eval_loss": measured.loss,
            "eval_loss_low": low,
            "eval_loss_high": high,
            "perplexity": math.inf if measured.loss > 700 else math.exp(measured.loss),  # a float ends soon after
            "tokens": sum(measured.row_tokens),
        }
    for metric in metrics:
        if metric in GENERATED:
            values = [value for result in results if (value := getattr(result, metric)) is not None]
            figures[metric] = sum(values) / len(values)
    return results, figures


def _comparisons(
    subjects: Sequence[str],
    measured: Mapping[str, Sequence[RowResult]],
    metrics: Sequence[str],
    in_tasks: Mapping[str, TaskFigures],
    tell: OnProgress,
) -> tuple[Comparison, ...]:
    from rankloom.evaluation.significance import compare

    pairs = list(combinations(subjects, 2))
    found = []
    for number, (before, after) in enumerate(pairs):
        tell("compare", number, len(pairs))
        for metric in metrics:
            old, new = ([getattr(result, metric) for result in measured[one]] for one in (before, after))
            weights = [float(result.tokens) for result in measured[before]] if metric == "loss" else None
            found.append(compare(metric, (before, old), (after, new), weights=weights))
        if before in in_tasks:
            old_figures, new_figures = in_tasks[before], in_tasks[after]
            for name, higher in old_figures.higher_is_better.items():
                old_values, new_values = old_figures.by_document[name], new_figures.by_document[name]
                found.append(compare(name, (before, old_values), (after, new_values), higher_is_better=higher))
    tell("compare", len(pairs), len(pairs))
    return tuple(comparison for comparison in found if comparison is not None)


def _kept_rows(held_out: HeldOut | None, measured: Mapping[str, Sequence[RowResult]]) -> tuple[Row, ...]:
    if held_out is None:
        return ()
    rows = []
    for place, row in enumerate(held_out.rows):
        prompt, expected = question_of(row) or (whole_text(row), "")
        rows.append(
            Row(
                prompt=as_text(prompt)[:MOST_TEXT],
                expected=expected[:MOST_TEXT],
                results={subject: results[place] for subject, results in measured.items()},
            )
        )
    return tuple(rows)


def _dataset(held_out: HeldOut | None, tasks: Sequence[str], limit: int | None) -> dict[str, Any]:
    rows = {} if held_out is None else held_out.to_dict()
    return rows | ({"tasks": list(tasks)} if tasks else {}) | ({} if limit is None else {"limit": limit})


def _told(tell: OnProgress, label: str, what: str, done: int, total: int) -> None:
    tell(f"{label}: {what}", done, total)
