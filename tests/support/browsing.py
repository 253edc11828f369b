"""How the tests of the dashboard wait for a page in a real browser."""

from __future__ import annotations

import time
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

import pytest

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: no page is seen in a real browser"
)

MINUTE = 60_000  # ms
_POINTS = """() => document.querySelectorAll('.js-plotly-plot')[0]?.data
    .flatMap(trace => Array.from(trace.y)).filter(y => y !== null).length ?? 0"""


def settle(page: playwright.Page) -> None:
    """Wait until the page is drawn, without an exception on it."""
    playwright.expect(page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]')).to_be_visible(
        timeout=MINUTE
    )
    playwright.expect(page.locator('[data-testid="stException"]')).to_have_count(0)


def visit(page: playwright.Page, url: str, title: str | None = None) -> None:
    """Go to a page, which has this title if one is given, and wait until it is drawn."""
    page.goto(url)
    named = {} if title is None else {"name": title, "exact": True}
    playwright.expect(page.get_by_role("heading", level=1, **named)).to_be_visible(timeout=MINUTE)
    settle(page)


def says(page: playwright.Page, *, timeout: float = MINUTE, **expected: str | None) -> None:
    """Wait until the address holds these values, for so many milliseconds at most, and the page is drawn."""

    def holds(url: str) -> bool:
        held = parse_qs(urlsplit(url).query)
        return all(held.get(key, [None])[0] == value for key, value in expected.items())

    page.wait_for_url(holds, timeout=timeout)
    settle(page)


def points(page: playwright.Page) -> int:
    """How many points the first chart has."""
    return page.evaluate(_POINTS)


def wait_for_points(page: playwright.Page, enough: Callable[[int], bool], *, seconds: float = 60) -> int:
    """Wait until the first chart has enough points, and say how many.

    The pages' own policy forbids Playwright's way to wait, which evaluates.
    """
    deadline = time.monotonic() + seconds
    while not enough(found := points(page)):
        assert time.monotonic() < deadline, f"{found} points on the first chart after {seconds:.0f} s"
        page.wait_for_timeout(100)
    return found
