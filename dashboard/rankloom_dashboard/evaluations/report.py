"""One evaluation on the page: figures, differences, what got worse, and every row."""

from __future__ import annotations

import pandas as pd
import streamlit as st

from rankloom.errors import DataError
from rankloom.evaluation.report import Report
from rankloom.evaluation.significance import LEAST_ROWS, Comparison
from rankloom_dashboard import elements, formats
from rankloom_dashboard.charts.advantages import advantages_info, draw_advantages
from rankloom_dashboard.charts.style import ROLE_COLORS, show
from rankloom_dashboard.evaluations import reads, tables
from rankloom_dashboard.evaluations.tables import Advantage, Run

_number = st.column_config.NumberColumn
_VERDICTS = {"better": ROLE_COLORS["running"], "undecided": ROLE_COLORS["stopped"], "worse": ROLE_COLORS["failed"]}
_SIGNED, _PLAIN = "%+.4f", "%.4f"
_MOST_SHOWN = 20_000  # characters of a text


def show_run(run: Run) -> None:
    """Shows an evaluation: its report, or what the registry has where none was kept."""
    try:
        report = reads.report(run.run)
    except DataError as error:
        st.info("Of this evaluation only the figures were kept.")
        st.text(str(error))
        st.dataframe(pd.DataFrame(tables.recorded_rows(run)), hide_index=True, alt="Recorded figures")
        return
    _about(report)
    _figures(report)
    if report.comparisons:
        _differences(report)
    if report.rows and tables.row_metrics(report):
        _rows(report)


def _about(report: Report) -> None:
    dataset = report.dataset
    shown: dict[str, str] = {}
    if "source" in dataset:
        first = " (the first ones)" if "limit" in dataset else ""
        shown |= {"dataset": formats.cut(formats.value(dataset["source"]), 200)}
        shown |= {"rows": formats.count(dataset.get("rows")) + first}
        if cut := dataset.get("cut_rows"):
            shown |= {f"rows cut to {dataset['max_length']} tokens": formats.count(cut)}
        if dropped := dataset.get("dropped_rows"):
            shown |= {"rows left out, as too long": formats.count(dropped)}
        shown |= {"SHA-256 of all rows": formats.shorten(formats.value(dataset.get("sha256")), 16)}
    if "tasks" in dataset:
        shown |= {"tasks": formats.cut(formats.value(dataset["tasks"]), 200)}
    elements.fields(shown)


def _figures(report: Report) -> None:
    rows = tables.figure_rows(report)
    names = {name for row in rows for name in row} - {"model", "95% interval", "tokens"}
    st.dataframe(
        pd.DataFrame(rows),
        column_config={
            "model": st.column_config.TextColumn(pinned=True),
            "tokens": _number(format="%d"),
            **{name: _number(format=_PLAIN) for name in names},
        },
        hide_index=True,
        placeholder=formats.MISSING,
        alt="Figures of each model",
    )


def _differences(report: Report) -> None:
    st.subheader("Differences")
    st.dataframe(
        pd.DataFrame(tables.comparison_rows(report)),
        column_config={
            "difference": _number(format=_SIGNED),
            "verdict": st.column_config.MultiselectColumn(options=list(_VERDICTS), color=list(_VERDICTS.values())),
        },
        hide_index=True,
        placeholder=formats.MISSING,
        alt="Each model beside those before it: difference, interval, p and verdict",
    )
    st.caption(
        "Of each model less the one beside it, on the same rows. Intervals by a paired bootstrap over rows; p by "
        "McNemar's exact test for exact match, else by flipping the signs of the differences at random, not corrected "
        "for the number of comparisons. The verdict is the interval's: undecided if it holds 0, or there are fewer "
        f"than {LEAST_ROWS} rows; a model that gives no number where the other does is worse."
    )


def _rows(report: Report) -> None:
    st.subheader("What got better, and what worse")
    comparison = _chosen(report)
    if comparison is None:
        st.info("These two were not compared by this metric.")
        return
    _regression_check(comparison)
    found = tables.advantages(report, comparison)
    info = advantages_info(found, unit=tables.UNITS[comparison.metric])
    show(draw_advantages(info), key="advantages", alt=info.alt)
    st.caption(f"{info.caption} A difference of up to {comparison.margin:g} counts as none.")
    picked = _examples(report, comparison, found)
    if picked is None:
        st.caption("Select a row of the table to read it in full.")
    else:
        _example(report, picked)


def _chosen(report: Report) -> Comparison | None:
    names = tables.subject_names(report)
    pairs = {f"{one.after}~{one.before}": one for one in report.comparisons if one.metric in tables.METRIC_NAMES}
    with st.grid(2, min_column_width=300):
        pair = elements.choose(
            "Compare",
            list(pairs),
            key="pair",
            show=lambda key: f"{names[pairs[key].after]} beside {names[pairs[key].before]}",
        )
        metric = elements.choose("by", tables.row_metrics(report), key="by", show=tables.METRIC_NAMES.__getitem__)
    return tables.find_comparison(report, metric, pairs[pair].before, pairs[pair].after)


def _regression_check(comparison: Comparison) -> None:
    finding, said = tables.regression_check(comparison)
    match finding:
        case "worse":
            st.error(said, icon=":material/trending_down:")
        case "mixed":
            st.warning(said, icon=":material/rule:")
        case "better":
            st.success(said, icon=":material/check:")
        case "unknown":
            st.info(said, icon=":material/rule:")


def _examples(report: Report, comparison: Comparison, found: list[Advantage]) -> int | None:
    with st.container(horizontal=True):
        only = st.toggle("Only what got worse", key="worse", bind="query-params")
        last_first = st.toggle("Worst first", key="worst", bind="query-params")
    wanted = [one for one in found if one.change == "worse" or not only]
    if last_first:
        wanted.reverse()
    if not wanted:
        st.info("No row got worse.")
        return None
    shown = wanted[: tables.ROWS_SHOWN]
    rows = tables.example_rows(report, comparison, shown)
    state = st.dataframe(
        pd.DataFrame(rows),
        column_config={
            "row": _number(width=50, pinned=True),
            "by": _number("better by", format=_SIGNED, width=80),
            "winner": st.column_config.TextColumn(width=150),
            "prompt": st.column_config.TextColumn(width=260),
            "expected": st.column_config.TextColumn(width=220),
            **{name: _number(format=_PLAIN) for name in rows[0] if name.startswith(_metric_columns(comparison))},
        },
        hide_index=True,
        placeholder=formats.MISSING,
        key=f"examples-{report.run}-{comparison.metric}-{comparison.before}-{comparison.after}-{only}-{last_first}",
        on_select="rerun",
        selection_mode="single-row",
        height=320,
        alt="Rows, from the one that is won most to the one that is lost most",
    )
    if len(wanted) > len(shown):
        st.caption(f"{len(shown)} of {len(wanted)} rows.")
    chosen = state["selection"]["rows"]
    return shown[chosen[0]].row if chosen else None


def _metric_columns(comparison: Comparison) -> str:
    return f"{tables.METRIC_NAMES[comparison.metric]}: "


def _example(report: Report, place: int) -> None:
    row = report.rows[place]
    names = tables.subject_names(report)
    st.subheader(f"Row {place}")
    _text("prompt", row.prompt)
    if row.expected:
        _text("expected", row.expected)
    with st.grid(min_column_width=260):
        for subject, result in row.results.items():
            with st.container(border=True):
                st.text(names[subject])
                figures = {"loss": result.loss, "exact match": result.exact_match, "ROUGE-L": result.rouge_l}
                st.caption(" · ".join(f"{name} {value:.4f}" for name, value in figures.items() if value is not None))
                if result.text is not None:
                    _text("wrote", result.text)


def _text(name: str, text: str) -> None:
    st.caption(name)
    st.code(formats.cut(text, _MOST_SHOWN), language=None, wrap_lines=True)
