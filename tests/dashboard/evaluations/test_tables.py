from __future__ import annotations

import math
import os
import subprocess
import sys
from datetime import UTC, datetime

import pytest

from rankloom.evaluation.report import Report, Row, RowResult, Subject
from rankloom.evaluation.significance import Comparison, compare
from rankloom_dashboard.charts.advantages import MOST_BARS, advantages_info, draw_advantages
from rankloom_dashboard.evaluations import tables
from rankloom_dashboard.evaluations.tables import Advantage
from rankloom_registry import EvaluationRecord

LOSSES = {"base": [2.0, 1.0, 1.5, 1.0], "a1": [1.0, 1.05, 2.0, math.nan]}


def report(losses: dict[str, list[float]] = LOSSES, name: str = "tuned") -> Report:
    count = len(losses["base"])
    rows = tuple(
        Row(
            prompt=f"p{place}",
            expected="e",
            results={
                subject: RowResult(loss=values[place], tokens=1, text="t" if place else None)
                for subject, values in losses.items()
            },
        )
        for place in range(count)
    )
    found = compare("loss", ("base", losses["base"]), ("a1", losses["a1"]))
    assert found is not None
    figures = {"eval_loss": 1.25, "eval_loss_low": 1.0, "eval_loss_high": 1.5, "perplexity": 3.4, "tokens": 8}
    return Report(
        run="r1",
        base_content_root="c0" * 32,
        dataset={"source": "rows.jsonl", "rows": count},
        max_new_tokens=8,
        subjects=(
            Subject(subject="base", name="base", metrics=figures),
            Subject(subject="a1", name=name, metrics=figures | {"rouge_l": 0.5, "arc.acc": 0.25}),
        ),
        comparisons=(found,),
        rows=rows,
    )


def only(found: Report) -> Comparison:
    return found.comparisons[0]


def test_rows_stand_from_the_one_that_is_won_most_to_the_one_without_a_number() -> None:
    found = tables.advantages(report(), only(report()))
    assert [(one.row, one.change) for one in found] == [(0, "better"), (1, "same"), (2, "worse"), (3, "worse")]
    assert found[0].by == 1.0 and math.isnan(found[-1].by)
    rows = tables.example_rows(report(), only(report()), found)
    assert [row["winner"] for row in rows] == ["tuned", None, "base", "base"]
    assert rows[0]["by"] == 1.0 and rows[-1]["by"] is None
    assert rows[0]["Loss: tuned"] == 1.0 and "Text: tuned" not in rows[0] and rows[1]["Text: base"] == "t"


def test_a_row_on_which_only_the_other_gives_no_number_is_won_most() -> None:
    """As the comparison counts it."""
    found = report({"base": [math.nan, 2.0, 1.0, math.inf], "a1": [1.0, 1.0, math.nan, math.inf]})
    listed = tables.advantages(found, only(found))
    assert [(one.row, one.change) for one in listed] == [(0, "better"), (1, "better"), (3, "same"), (2, "worse")]
    assert (only(found).wins, only(found).regressions) == (2, (2,))
    assert [row["winner"] for row in tables.example_rows(found, only(found), listed)] == [
        "tuned",
        "tuned",
        None,
        "base",
    ]


def test_figures_have_a_row_a_model() -> None:
    base, tuned = tables.figure_rows(report())
    assert base == {
        "model": "base",
        "eval loss": 1.25,
        "95% interval": "1.0000 to 1.5000",
        "perplexity": 3.4,
        "tokens": 8,
    }
    assert tuned["ROUGE-L"] == 0.5 and tuned["arc.acc"] == 0.25
    (row,) = tables.comparison_rows(report())
    assert (row["of"], row["beside"], row["verdict"], row["worse rows"]) == ("tuned", "base", ["worse"], 2)


def test_two_models_of_one_name_are_told_apart() -> None:
    assert tables.subject_names(report(name="base")) == {"base": "base base", "a1": "base a1"}
    assert tables.subject_names(report()) == {"base": "base", "a1": "tuned"}


def test_what_was_recorded_at_once_is_one_run() -> None:
    def record(evaluation_id: str, **dataset: object) -> EvaluationRecord:
        return EvaluationRecord(
            evaluation_id=evaluation_id,
            adapter_id="a",
            base_content_root="c0",
            dataset=dataset,
            metrics={"eval_loss": 1.0},
            created_at=datetime(2026, 3, 2, tzinfo=UTC),
        )

    (many,) = tables.runs([record(f"ab12-{place}") for place in reversed(range(12))])
    assert [one.evaluation_id for one in many.records] == [f"ab12-{place}" for place in range(12)]
    found = tables.runs([record("ab12-1", source="x"), record("old"), record("ab12-0", source="x")])
    assert [(run.run, len(run.records)) for run in found] == [("ab12", 2), ("old", 1)]
    assert [one.evaluation_id for one in found[0].records] == ["ab12-0", "ab12-1"]
    assert "x · 2 adapters · ab12" in found[0].label and "1 adapter" in found[1].label
    assert tables.recorded_rows(found[1]) == [{"adapter": "a", "eval_loss": 1.0}]


@pytest.mark.parametrize(("p", "said"), [(None, None), (0.00001, "< 0.0001"), (0.04321, "0.0432"), (1.0, "1.0000")])
def test_a_probability_is_never_zero(p: float | None, said: str | None) -> None:
    assert tables.probability(p) == said


def test_intervals() -> None:
    assert tables.interval(None, 1.0) is None
    assert tables.interval(-0.5, 0.25, signed=True) == "-0.5000 to +0.2500"


def test_a_chart_has_a_bar_a_row_and_never_too_many() -> None:
    found = tables.advantages(report(), only(report()))
    info = advantages_info(found, unit="nats a token")
    assert [bar.row for bar in info.bars] == [0, 1, 2] and (info.rows, info.left_out) == (3, 1)
    figure = draw_advantages(info)
    assert [(trace.name, list(trace.y)) for trace in figure.data] == [
        ("better", [1.0]),
        ("same", pytest.approx([-0.05])),
        ("worse", [-0.5]),
    ]
    many = [Advantage(row=place, by=-place, change="worse") for place in range(10_000)]
    info = advantages_info(many, unit="")
    assert len(info.bars) == MOST_BARS and (info.bars[0].row, info.bars[-1].row) == (0, 9_999)
    assert not draw_advantages(advantages_info([], unit="")).data


@pytest.mark.parametrize(
    ("losses", "finding", "said"),
    [
        (
            [1.5] * 8,
            "better",
            "No regression: worse on 0 of 8 rows (0.0%), better on 8, each by more than 0.1 nats a token.",
        ),
        ([1.5] * 3, "unknown", "No regression is shown: worse on 0 of 3 rows"),
        ([2.0] * 8, "unknown", "These rows do not tell which of the two is better."),
        ([1.0] * 7 + [2.5], "mixed", "No regression is shown on the whole, but worse on 1 of 8 rows (12.5%)"),
        ([2.5] * 8, "worse", "Regression: worse on the whole, and worse on 8 of 8 rows"),
        ([2.05] * 8, "worse", "Regression: worse on the whole, and worse on 0 of 8 rows"),
    ],
)
def test_no_regression_is_claimed_only_where_it_is_shown(losses: list[float], finding: str, said: str) -> None:
    found = compare("loss", ("base", [2.0] * len(losses)), ("a1", losses))
    assert found is not None
    kind, text = tables.regression_check(found)
    assert kind == finding and said in text


def test_what_is_drawn_of_the_rows_is_said() -> None:
    """A picture of some of the rows that is said to hold all of them is read as if it did."""

    def said(*by: float, unit: str = "nats a token") -> tuple[str, str]:
        return tables_of([Advantage(row=place, by=each, change="same") for place, each in enumerate(by)], unit)

    def tables_of(found: list[Advantage], unit: str) -> tuple[str, str]:
        info = advantages_info(found, unit=unit)
        return info.alt, info.caption

    assert said(0.5, -0.25) == (
        "2 bars, a row each, from the best to the worst: +0.5000 to -0.2500 nats a token",
        "One bar a row.",
    )
    assert said(0.5, math.nan)[1] == "One bar a row; 1 row without a number is left out."
    assert said(math.nan)[0] == "No row has a number"
    _, many = tables_of([Advantage(row=place, by=-place, change="worse") for place in range(10_000)], "ROUGE-L")
    assert many == "400 of 10,000 rows, at equal distances."
    for name, unit in tables.UNITS.items():
        assert not unit.startswith("of "), name


def test_the_server_loads_no_model_library_for_it() -> None:
    """Nor does a worker before it has its order."""
    program = (
        "import sys, rankloom_dashboard.evaluations.report, rankloom_dashboard.adapters.choosing\n"
        "import rankloom.evaluation.evaluate, rankloom.evaluation.tasks, rankloom_dashboard.jobs.worker\n"
        "heavy = {'torch', 'transformers', 'peft', 'ray', 'datasets', 'lm_eval'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
