from __future__ import annotations

import pytest
from browsing import MINUTE, playwright, says, settle, visit

from rankloom_registry import AdapterAnnotated, Registry

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def address(serve, made_once) -> str:
    _, port = serve(made_once.path)
    return f"http://127.0.0.1:{port}"


def tick(page: playwright.Page, row: int, *, ids: str) -> None:
    """Tick a row, so that the address holds these ids; a click that falls while the table is drawn again is lost."""
    for _ in range(4):
        # The table is a canvas; rows are 35 pixels high and the boxes to tick stand at their left end.
        page.get_by_test_id("stDataFrame").click(position={"x": 16, "y": 35 * row + 17})
        try:
            return says(page, ids=ids, timeout=MINUTE / 4)
        except playwright.TimeoutError:
            continue
    raise AssertionError(f"four clicks on row {row} did not tick it")


def test_a_shared_address_shows_the_same_filter_order_and_selection(page, chromium, address: str, made_once) -> None:
    visit(page, f"{address}/adapters", "Adapters")
    page.get_by_label("Rank from").fill("32")
    page.keyboard.press("Enter")
    says(page, where="r >= 32")
    text = page.get_by_role("textbox", name="Filter as text")
    playwright.expect(text).to_have_value("r >= 32")
    text.fill("r >= 32 and eval_loss < 2.2")
    text.press("Enter")
    says(page, where="r >= 32 and eval_loss < 2.2")
    playwright.expect(page.get_by_text("1–3 of 3 that pass, of 4 adapters")).to_be_visible(timeout=MINUTE)
    order = page.get_by_role("combobox", name="Order")
    order.click()
    order.fill("learning_rate, name")
    order.press("Enter")
    says(page, order="learning_rate, name")
    table = page.get_by_test_id("stDataFrame")
    playwright.expect(table.locator('tr[aria-rowindex="2"]')).to_contain_text("lora-tiny-4", timeout=MINUTE)
    playwright.expect(table).to_have_count(1, timeout=MINUTE)  # that of the order before is gone
    table.scroll_into_view_if_needed()
    tick(page, 1, ids=made_once.discarded)
    tick(page, 3, ids=f"{made_once.discarded},{made_once.best}")
    playwright.expect(page.get_by_text("2 selected")).to_be_visible()

    other = chromium.new_context(viewport=page.viewport_size)
    try:
        shared = other.new_page()
        visit(shared, page.url, "Adapters")
        playwright.expect(shared.get_by_role("textbox", name="Filter as text")).to_have_value(
            "r >= 32 and eval_loss < 2.2"
        )
        playwright.expect(shared.get_by_label("Rank from")).to_have_value("32")
        playwright.expect(shared.get_by_role("combobox", name="Order")).to_have_value("learning_rate, name")
        playwright.expect(shared.get_by_text("2 selected")).to_be_visible()
        playwright.expect(shared.get_by_text("1–3 of 3 that pass, of 4 adapters")).to_be_visible()
        shared.get_by_test_id("stMain").get_by_role("link", name="Compare", exact=True).click()
        playwright.expect(shared.get_by_role("heading", name="Compare adapters", exact=True)).to_be_visible(
            timeout=MINUTE
        )
        says(shared, ids=f"{made_once.discarded},{made_once.best}")
    finally:
        other.close()


def test_pages_parts_and_toggles_stand_in_the_address(page, address: str, made_once) -> None:
    visit(page, f"{address}/adapter?adapter={made_once.best}", "Adapter")
    page.get_by_role("tab", name="Weights").click()
    says(page, adapter=made_once.best, part="Weights")
    playwright.expect(page.locator(".js-plotly-plot")).to_have_count(2, timeout=MINUTE)
    page.reload()
    settle(page)
    playwright.expect(page.get_by_role("tab", name="Weights")).to_have_attribute("aria-selected", "true")
    visit(page, f"{address}/compare?ids={made_once.best},{made_once.second}", "Compare adapters")
    page.get_by_text("Differences only").click()
    says(page, differences="true")
    page.get_by_text("Row overlap", exact=True).first.click()
    says(page, measure="Row overlap", differences="true", ids=f"{made_once.best},{made_once.second}")


def test_an_adapter_is_tagged_and_discarded_from_the_list(page, serve, made) -> None:
    with Registry.open(made.path) as registry:
        registry.record(AdapterAnnotated(adapter_id=made.second, tags_added=("keep",)))
    _, port = serve(made.path, allow_changes=True)
    visit(page, f"http://127.0.0.1:{port}/adapters?ids={made.second}", "Adapters")
    page.get_by_role("button", name="Tag", exact=True).click()
    tags = page.get_by_role("combobox", name="Add tags")
    tags.fill("from-the-browser")
    tags.press("Enter")
    page.keyboard.press("Tab")  # the list of known tags closes
    page.get_by_role("button", name="Change tags").click()
    playwright.expect(page.get_by_text("The tags were changed.")).to_be_visible(timeout=MINUTE)
    settle(page)
    page.get_by_role("button", name="Discard", exact=True).click()
    page.get_by_label("Reason").fill("not needed")
    page.get_by_role("button", name="Discard 1 adapter").click()
    playwright.expect(page.get_by_text("The adapters were discarded.")).to_be_visible(timeout=MINUTE)
    settle(page)
    with Registry.open(made.path) as registry:
        adapter = registry.adapter(made.second)
    assert (adapter.status, adapter.tags) == ("discarded", ("from-the-browser", "keep"))


def test_an_adapter_that_is_not_offered_can_be_typed(page, address: str, made_once) -> None:
    visit(page, f"{address}/adapter", "Adapter")
    chosen = page.get_by_role("combobox", name="Adapter")
    chosen.click()
    chosen.fill("lora-tiny-5@champion")
    chosen.press("Enter")
    says(page, adapter=made_once.best)
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
