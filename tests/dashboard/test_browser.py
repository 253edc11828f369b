"""Every page as people see it: it fits, it asks nobody outside, and what others wrote stays text."""

from __future__ import annotations

from pathlib import Path

import pytest
from browsing import playwright, settle, visit

from rankloom_dashboard import elements

pytestmark = pytest.mark.browser
VIEWS = sorted(path.stem for path in Path(elements.__file__).with_name("views").glob("*.py") if path.stem != "__init__")
PATHS = ["" if name == Path(elements.OVERVIEW).stem else name for name in VIEWS]


@pytest.fixture(scope="module")
def address(serve, made_once) -> str:
    _, port = serve(made_once.path)
    return f"http://127.0.0.1:{port}"


def fits(page: playwright.Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_every_page_fits_and_is_named_for_those_who_do_not_see_it(page, address: str, made_once) -> None:
    assert len(PATHS) >= 6
    for path in PATHS:
        visit(page, f"{address}/{path}?adapter={made_once.best}&ids={made_once.best},{made_once.second}")
        assert fits(page), path
        # What can be typed into or pressed has a name, and so has each table and chart.
        nameless = page.evaluate(
            """[...document.querySelectorAll('[data-testid=stMain] :is(input, textarea, select, button)')]
                .filter(one => one.offsetParent && !(one.ariaLabel || one.innerText || one.title || one.labels?.length
                    || one.getAttribute('aria-labelledby') || one.closest('[aria-label], label')))
                .map(one => one.outerHTML.slice(0, 200))"""
        )
        assert nameless == [], path


def test_a_search_is_chosen_on_the_overview_and_opened(page, address: str, made_once) -> None:
    visit(page, address)
    table = page.locator('[data-testid="stDataFrame"]:visible').first
    table.scroll_into_view_if_needed()
    # The table is a canvas; rows are 35 pixels high and the boxes to tick stand at their left end.
    table.click(position={"x": 16, "y": 35 + 17})
    page.wait_for_url(lambda url: f"search={made_once.search_id}" in url, timeout=60_000)
    settle(page)
    page.get_by_role("link", name="Open best adapter").click()
    page.wait_for_url(lambda url: f"adapter?adapter={made_once.best}" in url, timeout=60_000)
    playwright.expect(page.get_by_role("heading", name="Adapter", exact=True)).to_be_visible(timeout=60_000)
    settle(page)


def test_text_from_the_registry_runs_nothing_and_fetches_nothing(page, serve, hostile) -> None:
    _, port = serve(hostile.path)
    for path in PATHS:
        visit(page, f"http://127.0.0.1:{port}/{path}?adapter={hostile.imported}&ids={hostile.imported},{hostile.best}")
        playwright.expect(page.locator("img[src*=evil], a[href*=evil]")).to_have_count(0)
        if path in ("adapter", "compare"):
            playwright.expect(page.get_by_text("evil.example").first).to_be_attached(timeout=60_000)
