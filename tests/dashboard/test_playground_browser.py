"""The playground in a real browser: answers appear side by side while they are written, and a second turn follows."""

from __future__ import annotations

import re
from typing import Any

import pytest
from browsing import playwright

pytestmark = pytest.mark.browser
LONG = 240_000  # milliseconds, for a model that is loaded on a busy machine


def test_answers_stream_side_by_side_and_a_second_turn_follows(page: Any, serve: Any, trained: Any) -> None:
    _, port = serve(trained.registry, allow_changes=True)
    good, slow = trained.adapters
    settings = "temperature=0.8&seed=3&tokens=80"
    page.goto(f"http://127.0.0.1:{port}/playground?ids={good},{slow}&{settings}")
    page.get_by_role("button", name="Load the model").click(timeout=LONG)
    box = page.get_by_placeholder("Say something to all of them")
    playwright.expect(box).to_be_enabled(timeout=LONG)
    box.fill("negate : the girl has loved the farm = <script>alert(1)</script>")
    box.press("Enter")
    # While they write: figures of all three columns move, and the page was not loaded again.
    page.evaluate("window.same = true")
    playwright.expect(page.get_by_text("writing…")).to_have_count(3, timeout=LONG)
    playwright.expect(page.get_by_text(re.compile(r"^[1-9]\d* tokens? · .*writing…$"))).to_have_count(3, timeout=LONG)
    playwright.expect(page.get_by_text("writing…")).to_have_count(0, timeout=LONG)
    playwright.expect(page.get_by_text(re.compile(r"^\d+ tokens? · [\d.]+ a second"))).to_have_count(3)
    playwright.expect(box).to_be_enabled(timeout=LONG)
    box.fill("the doctor")
    box.press("Enter")
    playwright.expect(page.get_by_text(re.compile(r"^[1-9]\d* tokens? · [\d.]+ a second"))).to_have_count(
        6, timeout=LONG
    )
    playwright.expect(page.get_by_text("writing…")).to_have_count(0, timeout=LONG)
    playwright.expect(page.get_by_text("<script>alert(1)</script>")).to_be_visible()
    assert page.evaluate("window.same")
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    page.get_by_role("button", name="Let go of the model").click()
    playwright.expect(page.get_by_role("button", name="Load the model")).to_be_visible(timeout=LONG)
    playwright.expect(page.get_by_text("the doctor")).to_have_count(0)
