"""A search is watched in a real browser while it runs, from the snapshots that its process publishes."""

from __future__ import annotations

import re

import pytest
from browsing import playwright, points, wait_for_points

from rankloom_registry import Registry, SearchEnded, SearchStarted, TrialEnded, TrialReported, TrialStarted
from rankloom_registry.store.owner import Owner

pytestmark = pytest.mark.browser


@pytest.fixture
def page(page: playwright.Page) -> playwright.Page:
    """The page, high enough for all of a search."""
    page.set_viewport_size({"width": page.viewport_size["width"], "height": 1600})
    return page


@pytest.fixture(scope="module")
def address(serve, made_once) -> str:
    _, port = serve(made_once.path)
    return f"http://127.0.0.1:{port}/search"


def test_each_tab_is_drawn_and_fits(page, address: str) -> None:
    page.goto(f"{address}?count=Stopped+too")
    for tab, charts in (("Trials", 2), ("Lanes", 3), ("Parameters", 11), ("Pairs", 4), ("Trade-offs", 4)):
        page.get_by_role("tab", name=tab).click(timeout=60_000)
        playwright.expect(page.locator(".js-plotly-plot")).to_have_count(charts, timeout=60_000)
        playwright.expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
        playwright.expect(page.locator('[data-testid="stException"]')).to_have_count(0)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_what_is_chosen_stands_in_the_address(page, address: str) -> None:
    page.goto(address)
    page.get_by_role("radio", name="Top 5").click(timeout=60_000)
    page.get_by_role("radio", name="Device time").click()
    page.get_by_role("tab", name="Pairs").click()
    page.get_by_role("radio", name="At the first evaluation").click()
    page.wait_for_url(
        lambda url: all(part in url for part in ("curves=Top", "against=Device", "tab=Pairs", "count=At")),
        timeout=60_000,
    )
    page.reload()
    for chosen in ("Top 5", "Device time", "At the first evaluation"):
        playwright.expect(page.get_by_role("radio", name=chosen)).to_be_checked(timeout=60_000)


def report(search_id: str, number: int, step: int, loss: float) -> TrialReported:
    return TrialReported(trial_id=f"{search_id}-{number}", step=step, metrics={"eval_loss": loss, "wall_s": step})


def test_a_running_search_is_watched_until_it_ends(page, serve, made) -> None:
    registry = Registry.open(made.path)
    known = registry.search(made.search_id)
    start = SearchStarted(
        search_id="live",
        name="live",
        base_content_root=known.base_content_root,
        dataset={},
        config={},
        metric="eval_loss",
        mode="min",
        num_samples=2,
        seed=0,
    )
    begun = [
        TrialStarted(trial_id=f"live-{n}", search_id="live", number=n, params={"r": 8 * (n + 1)}, lane="lane-0", slot=n)
        for n in range(2)
    ]
    ended = [TrialEnded(trial_id=f"live-{n}", status="completed", metrics={"steps": 20}) for n in range(2)]
    with Owner(made.path, publish_s=0.2):  # as the driver of a search keeps the file
        registry.record(start, *begun, report("live", 0, 10, 3.0))
        _, port = serve(made.path)
        page.goto(f"http://127.0.0.1:{port}/search?search=live")
        playwright.expect(page.get_by_text("0 of 2 trials finished")).to_be_visible(timeout=60_000)
        wait_for_points(page, lambda found: found == 1)
        page.evaluate("window.neverReloaded = true")
        grid = page.get_by_test_id("stDataFrame")

        def losses(written: str) -> playwright.Locator:
            # The table is a canvas; what a screen reader is given of it lies inside, out of Playwright's roles.
            return grid.locator("[role=gridcell]").filter(has_text=re.compile(f"^{re.escape(written)}$"))

        playwright.expect(losses("3")).to_be_attached(timeout=30_000)

        registry.record(report("live", 1, 10, 2.75), report("live", 0, 20, 2.5))
        wait_for_points(page, lambda found: found == 3)
        playwright.expect(losses("2.75")).to_be_attached(timeout=30_000)
        playwright.expect(losses("2.5")).to_be_attached(timeout=30_000)
        playwright.expect(page.get_by_test_id("stMetricValue").get_by_text("2.5000")).to_be_visible()

        registry.record(report("live", 1, 20, 2.25), *ended)
        playwright.expect(page.get_by_text("2 of 2 trials finished")).to_be_visible(timeout=30_000)
        registry.record(SearchEnded(search_id="live", status="completed"))
    playwright.expect(page.get_by_text("trials finished")).to_have_count(0, timeout=30_000)
    playwright.expect(page.get_by_test_id("stMetricValue").get_by_text("2.2500")).to_be_visible()
    playwright.expect(page.get_by_text("completed", exact=True).first).to_be_visible()
    assert points(page) == 4
    assert page.evaluate("window.neverReloaded")
    playwright.expect(page.locator('[data-testid="stException"]')).to_have_count(0)
