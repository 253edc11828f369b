"""What the page of an evaluation shows, as plain rows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rankloom.evaluation.base import BASE
from rankloom.evaluation.report import Report, Row, RowResult
from rankloom.evaluation.significance import LOWER_IS_BETTER, Comparison
from rankloom_dashboard import formats
from rankloom_registry import EvaluationRecord

METRIC_NAMES = {"loss": "Loss", "exact_match": "Exact match", "rouge_l": "ROUGE-L"}
UNITS = {"loss": "nats a token", "exact_match": "matches", "rouge_l": "ROUGE-L"}
ROWS_SHOWN = 500
_CUT = 300  # characters of a text in a table
_SMALLEST_P = 1e-4
Change = Literal["better", "same", "worse"]
Finding = Literal["worse", "mixed", "better", "unknown"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """An evaluation as the registry has it: one record an adapter, made at once.

    Attributes:
        run: With what the ids of its records begin.
        records: These, in the order of the adapters.
    """

    run: str
    records: tuple[EvaluationRecord, ...]

    @property
    def label(self) -> str:
        """What to call it in a list."""
        first = self.records[0]
        source = first.dataset.get("source") or first.dataset.get("name") or first.dataset.get("tasks") or first.dataset
        what = formats.counted(len(self.records), "adapter", "adapters")
        return f"{formats.when(first.created_at)[:16]} · {formats.cut(formats.value(source), 80)} · {what} · {self.run}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Advantage:
    """One row, by one metric: how much better one model is there than another.

    Attributes:
        row: Its place in the dataset, from 0.
        by: How much better, whichever direction the metric has; not finite where one model gave no number.
        change: Whether that is beyond the margin.
    """

    row: int
    by: float
    change: Change


def runs(records: Sequence[EvaluationRecord]) -> list[Run]:
    """Puts together what was recorded at once, in the order of the first of each."""
    found: dict[str, list[EvaluationRecord]] = {}
    for record in records:
        found.setdefault(record.evaluation_id.rpartition("-")[0] or record.evaluation_id, []).append(record)
    return [
        # The ids end with the place of the adapter: 2 comes before 10.
        Run(run=run, records=tuple(sorted(mine, key=lambda one: (len(one.evaluation_id), one.evaluation_id))))
        for run, mine in found.items()
    ]


def subject_names(report: Report) -> dict[str, str]:
    """Names each model of a report so that no two names are the same."""
    names = [subject.name for subject in report.subjects]
    return {
        subject.subject: formats.cut(subject.name, 60)
        if names.count(subject.name) == 1
        else f"{formats.cut(subject.name, 40)} {formats.shorten(subject.subject, 8)}"
        for subject in report.subjects
    }


def figure_rows(report: Report) -> list[dict[str, Any]]:
    """Builds one row a model: its figures, those of tasks at the end."""
    names = subject_names(report)
    rows = []
    for subject in report.subjects:
        figures = dict(subject.metrics)
        low, high = figures.pop("eval_loss_low", None), figures.pop("eval_loss_high", None)
        row: dict[str, Any] = {"model": names[subject.subject]}
        if "eval_loss" in figures:
            row |= {"eval loss": figures.pop("eval_loss"), "95% interval": interval(low, high)}
            row |= {"perplexity": figures.pop("perplexity", None), "tokens": figures.pop("tokens", None)}
        rows.append(row | {METRIC_NAMES.get(name, name): value for name, value in figures.items()})
    return rows


def recorded_rows(run: Run) -> list[dict[str, Any]]:
    """Builds one row an adapter from what the registry has, where no report was kept."""
    return [{"adapter": record.adapter_id or BASE, **record.metrics} for record in run.records]


def comparison_rows(report: Report) -> list[dict[str, Any]]:
    """Builds one row a comparison."""
    names = subject_names(report)
    return [
        {
            "metric": METRIC_NAMES.get(one.metric, one.metric),
            "of": names[one.after],
            "beside": names[one.before],
            "difference": one.difference,
            "95% interval": interval(one.low, one.high, signed=True),
            "p": probability(one.p),
            "verdict": [one.verdict],
            "better rows": one.wins,
            "worse rows": len(one.regressions),
            "rows": one.rows,
        }
        for one in report.comparisons
    ]


def interval(low: float | None, high: float | None, *, signed: bool = False) -> str | None:
    """Formats an interval's ends."""
    if low is None or high is None:
        return None
    return f"{low:+.4f} to {high:+.4f}" if signed else f"{low:.4f} to {high:.4f}"


def probability(p: float | None) -> str | None:
    """Formats the p of a test."""
    return None if p is None else f"< {_SMALLEST_P:g}" if p < _SMALLEST_P else f"{p:.4f}"


def find_comparison(report: Report, metric: str, before: str, after: str) -> Comparison | None:
    """Returns a comparison of a report, if it holds that one."""
    wanted = (metric, before, after)
    return next((one for one in report.comparisons if (one.metric, one.before, one.after) == wanted), None)


def row_metrics(report: Report) -> list[str]:
    """Returns by what the rows of a report can be compared."""
    return [name for name in METRIC_NAMES if any(one.metric == name for one in report.comparisons)]


def regression_check(comparison: Comparison) -> tuple[Finding, str]:
    """Says whether a model got worse: on the whole, on some rows, on none, or on too few rows to tell."""
    worse, rows = len(comparison.regressions), comparison.rows
    by = "" if not comparison.margin else f", each by more than {comparison.margin:g} {UNITS[comparison.metric]}"
    said = f"worse on {worse} of {rows} rows ({comparison.regressed:.1%}), better on {comparison.wins}{by}"
    if comparison.verdict == "worse":
        return "worse", f"Regression: worse on the whole, and {said}."
    if worse:
        return "mixed", f"No regression is shown on the whole, but {said}."
    if comparison.verdict == "better":
        return "better", f"No regression: {said}."
    return "unknown", f"No regression is shown: {said}. These rows do not tell which of the two is better."


def advantages(report: Report, comparison: Comparison) -> list[Advantage]:
    """Says row by row how much better one model is, from the row that it wins most to the one that it loses most."""
    worse = set(comparison.regressions)
    found = []
    for place, row in enumerate(report.rows):
        old, new = (_value(row, subject, comparison.metric) for subject in (comparison.before, comparison.after))
        if old is None or new is None:
            continue
        by = old - new if comparison.metric in LOWER_IS_BETTER else new - old
        better = by > comparison.margin or (math.isfinite(new) and not math.isfinite(old))
        change: Change = "worse" if place in worse else "better" if better else "same"
        found.append(Advantage(row=place, by=by, change=change))
    # Where one gave no number at all, the other wins most.
    ends = {"better": -math.inf, "same": 0.0, "worse": math.inf}
    return sorted(found, key=lambda one: -one.by if math.isfinite(one.by) else ends[one.change])


def example_rows(report: Report, comparison: Comparison, shown: Sequence[Advantage]) -> list[dict[str, Any]]:
    """Builds one row an example: who wins it and by how much, what each model reached, and what it wrote."""
    names = subject_names(report)
    metric = comparison.metric
    rows = []
    for one in shown:
        row = report.rows[one.row]
        winner = {"better": names[comparison.after], "worse": names[comparison.before], "same": None}[one.change]
        cells: dict[str, Any] = {
            "row": one.row,
            "by": one.by if math.isfinite(one.by) else None,
            "winner": winner,
            "prompt": formats.cut(row.prompt, _CUT),
            "expected": formats.cut(row.expected, _CUT) or None,
        }
        cells |= {f"{METRIC_NAMES[metric]}: {names[key]}": _value(row, key, metric) for key in row.results}
        cells |= {
            f"Text: {names[key]}": formats.cut(result.text, _CUT)
            for key, result in row.results.items()
            if result.text is not None
        }
        rows.append(cells)
    return rows


def _value(row: Row, subject: str, metric: str) -> float | None:
    result: RowResult | None = row.results.get(subject)
    value: float | None = None if result is None else getattr(result, metric)
    return value
