"""An evaluation in a real browser: a row of the table is chosen and read in full, and what others wrote stays text."""

from __future__ import annotations

from typing import Any

import pytest
from browsing import playwright

from rankloom.evaluation.base import BASE
from rankloom.evaluation.report import Report, Row, RowResult, Subject, save_report
from rankloom.evaluation.significance import compare

pytestmark = pytest.mark.browser
LONG = 120_000  # milliseconds, on a busy machine


def test_a_row_is_read_in_full(page: Any, serve: Any, made: Any, hostile_text: str) -> None:
    losses = {BASE: [2.0, 1.0, 1.5], "a1": [1.0, 1.02, 2.5]}
    found = compare("loss", (BASE, losses[BASE]), ("a1", losses["a1"]))
    assert found is not None
    rows = tuple(
        Row(
            prompt=f"{hostile_text} prompt {place}",
            expected="the answer",
            results={
                who: RowResult(loss=of[place], tokens=1, text=f"{who} says {hostile_text}")
                for who, of in losses.items()
            },
        )
        for place in range(3)
    )
    report = Report(
        run="e",  # that of the registry's record e-1
        base_content_root="c0" * 32,
        dataset={"source": hostile_text, "rows": 3},
        max_new_tokens=8,
        subjects=tuple(Subject(subject=who, name=who, metrics={"eval_loss": 1.5}) for who in losses),
        comparisons=(found,),
        rows=rows,
    )
    save_report(report, made.path)
    _, port = serve(made.path)
    page.goto(f"http://127.0.0.1:{port}/evaluate?evaluation=e-1&worst=true")
    said = "No regression is shown on the whole, but worse on 1 of 3 rows (33.3%), better on 1"
    playwright.expect(page.get_by_text(said)).to_be_visible(timeout=LONG)
    playwright.expect(page.locator(".js-plotly-plot")).to_have_count(1, timeout=LONG)
    table = page.get_by_test_id("stDataFrame").last
    table.scroll_into_view_if_needed()
    # The table is a canvas; rows are 35 pixels high and the boxes to tick stand at their left end. The worst is first.
    table.click(position={"x": 16, "y": 35 + 17})
    playwright.expect(page.get_by_role("heading", name="Row 2")).to_be_visible(timeout=LONG)
    shown = page.get_by_test_id("stCode")
    playwright.expect(shown.filter(has_text=f"{hostile_text} prompt 2")).to_be_visible()
    playwright.expect(shown.filter(has_text=f"a1 says {hostile_text}")).to_be_visible()
    playwright.expect(page.locator("img[src*=evil], a[href*=evil]")).to_have_count(0)
    assert "evaluation=e&" in page.url + "&"
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
