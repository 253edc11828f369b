"""What an evaluation found, and the file beside the registry that keeps it row by row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from rankloom.errors import DataError
from rankloom.evaluation.base import BASE
from rankloom.evaluation.significance import Comparison
from rankloom_registry import Evaluated
from rankloom_registry.files import reports_folder, write_atomically

FORMAT = 1
MOST_TEXT = 20_000  # characters of a prompt, or of an expected answer, that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """One model on one row.

    Attributes:
        loss: Mean NLL, nats a token with loss; None if it was not measured.
        tokens: Tokens with loss.
        text: What it generated; None if it was not asked.
        exact_match: 1 if that is the expected answer, else 0.
        rouge_l: How near it is to that, 0 to 1.
    """

    loss: float | None = None
    tokens: int = 0
    text: str | None = None
    exact_match: float | None = None
    rouge_l: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row, and what each model made of it.

    Attributes:
        prompt: The question, or the whole row where it has none.
        expected: The answer; empty where there is none.
        results: By adapter id, and `base` for the base alone.
    """

    prompt: str
    expected: str
    results: Mapping[str, RowResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A model that was measured.

    Attributes:
        subject: An adapter's id, or 'base'.
        name: The adapter's name, or 'base'.
        metrics: `eval_loss` (nats a token) with the ends of its 95% interval, `perplexity`, `tokens`, `exact_match`,
            `rouge_l`, and `TASK.METRIC` of tasks; what was not measured is missing.
    """

    subject: str
    name: str
    metrics: Mapping[str, float | int | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """An evaluation of one adapter or more, and maybe their base, on the same rows.

    Attributes:
        run: Its id, with which the ids of its records in the registry begin.
        base_content_root: The base.
        dataset: What `HeldOut.to_dict` says of the rows, the tasks, and the limit of both.
        max_new_tokens: Tokens that were generated at most.
        subjects: Who was measured, the base first.
        comparisons: Each adapter beside the base, and beside the adapters that were named before it.
        rows: Row by row; empty where only tasks were run.
    """

    run: str
    base_content_root: str
    dataset: Mapping[str, Any]
    max_new_tokens: int
    subjects: tuple[Subject, ...]
    comparisons: tuple[Comparison, ...]
    rows: tuple[Row, ...] = field(default=(), repr=False)

    def metrics(self, subject: str) -> Mapping[str, float | int | None]:
        """Return the figures of an adapter or of the base; nothing for one that was not measured."""
        return next((one.metrics for one in self.subjects if one.subject == subject), {})

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the rows as JSON-ready values."""
        return {
            "run": self.run,
            "base_content_root": self.base_content_root,
            "dataset": dict(self.dataset),
            "max_new_tokens": self.max_new_tokens,
            "subjects": [asdict(subject) for subject in self.subjects],
            "comparisons": [comparison.to_dict() for comparison in self.comparisons],
        }

    def events(self) -> list[Evaluated]:
        """Return what is recorded: one event an adapter, with the base's figures beside its own."""
        base = {f"base_{name.removeprefix('eval_')}": value for name, value in self.metrics(BASE).items()}
        base.pop("base_tokens", None)
        adapters = [subject for subject in self.subjects if subject.subject != BASE]
        return [
            Evaluated(
                evaluation_id=f"{self.run}-{place}",
                adapter_id=adapter.subject,
                base_content_root=self.base_content_root,
                dataset=self.dataset,
                metrics={**adapter.metrics, **base},
            )
            for place, adapter in enumerate(adapters)
        ]


def report_file(registry: Path, evaluation_id: str) -> Path:
    """Return where the report of an evaluation is kept.

    Args:
        registry: The registry file.
        evaluation_id: As it is recorded, or the run with which it begins.
    """
    run = evaluation_id.partition("-")[0]
    if not run.isalnum():
        raise DataError(f"an evaluation's id begins with letters and digits, got {evaluation_id!r}")
    return reports_folder(registry) / f"{run}.jsonl"


def save_report(report: Report, registry: Path) -> Path:
    """Keep a report beside the registry: one JSON line of figures, then one a row."""
    path = report_file(registry, report.run)
    path.parent.mkdir(exist_ok=True)
    lines = [{"format": FORMAT, **report.to_dict()}, *map(asdict, report.rows)]
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode())
    return path


def load_report(path: Path) -> Report:
    """Read what `save_report` kept.

    Raises:
        DataError: There is no such file, it is none of this version, or it is not whole.
    """
    try:
        # Split at line feeds alone: text may hold other characters that `splitlines` takes for the end of a line.
        figures, *rows = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if (found := json.loads(figures)["format"]) != FORMAT:
            raise ValueError(f"format {found}, not {FORMAT}")
        # Each value is what its type says: a page shows them as they are.
        report = TypeAdapter(Report).validate_json(figures, strict=True)
        if len(rows) != (expected := report.dataset.get("rows", 0)):
            raise ValueError(f"{len(rows)} rows of {expected}")
        return replace(report, rows=tuple(TypeAdapter(Row).validate_json(row, strict=True) for row in rows))
    except FileNotFoundError as error:
        raise DataError(f"the rows of this evaluation are not in {path}: evaluate again to see them") from error
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path} is no report of an evaluation ({error}): evaluate again") from error
