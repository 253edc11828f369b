from __future__ import annotations

from pathlib import Path

import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: no page is seen in a real browser"
)
pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(serve, made_once) -> str:
    _, port = serve(made_once.path)
    return f"http://127.0.0.1:{port}"


def visit(page: playwright.Page, url: str, title: str) -> None:
    page.goto(url)
    playwright.expect(page.get_by_role("heading", name=title, exact=True)).to_be_visible(timeout=60_000)
    settle(page)


def settle(page: playwright.Page) -> None:
    playwright.expect(page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]')).to_be_visible(
        timeout=60_000
    )
    playwright.expect(page.locator('[data-testid="stException"]')).to_have_count(0)


def fits(page: playwright.Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_the_three_pages_in_a_browser(page, address: str, made_once, tmp_path: Path) -> None:
    for name, url, title, charts in (
        ("leaderboard", address, "Leaderboard", 2),
        ("adapter", f"{address}/adapter?adapter={made_once.best}", "Adapter", 1),
        ("compare", f"{address}/compare?ids={made_once.best},{made_once.second}", "Compare adapters", 1),
    ):
        visit(page, url, title)
        playwright.expect(page.locator(".js-plotly-plot")).to_have_count(charts, timeout=60_000)
        assert fits(page)
        page.screenshot(path=tmp_path / f"{name}.png", full_page=True)


def test_rows_chosen_on_the_leaderboard_are_compared(page, address: str, made_once) -> None:
    visit(page, address, "Leaderboard")
    table = page.get_by_test_id("stDataFrame")
    table.scroll_into_view_if_needed()
    for row, ids in ((1, made_once.best), (2, f"{made_once.best}%2C{made_once.second}")):
        # The table is a canvas; rows are 35 pixels high and the boxes to tick stand at their left end.
        table.click(position={"x": 16, "y": 35 * row + 17})
        page.wait_for_url(lambda url, ids=ids: f"ids={ids}" in url, timeout=60_000)
        settle(page)
    page.get_by_role("link", name="Compare adapters").click()
    playwright.expect(page.get_by_role("heading", name="Compare adapters", exact=True)).to_be_visible(timeout=60_000)
    settle(page)
    assert f"ids={made_once.best}%2C{made_once.second}" in page.url
    playwright.expect(page.get_by_text("lora-tiny-5", exact=False).first).to_be_visible()


def test_text_from_the_registry_runs_nothing_and_fetches_nothing(page, serve, hostile) -> None:
    _, port = serve(hostile.path)
    address = f"http://127.0.0.1:{port}"
    for url, title in (
        (f"{address}/?table=All+adapters", "Leaderboard"),
        (f"{address}/adapter?adapter={hostile.imported}", "Adapter"),
        (f"{address}/compare?ids={hostile.imported},{hostile.best}", "Compare adapters"),
    ):
        visit(page, url, title)
        playwright.expect(page.locator("img[src*=evil], a[href*=evil]")).to_have_count(0)
        playwright.expect(page.get_by_text("evil.example").first).to_be_attached()
