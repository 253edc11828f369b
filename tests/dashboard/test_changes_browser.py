"""What changes an adapter, and what lets it out, pressed in a real browser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browsing import MINUTE, playwright, settle, visit

from rankloom_registry import Registry

pytestmark = [pytest.mark.browser, pytest.mark.parametrize("page", [("light", 1280)], indirect=True)]
LONG = 4 * MINUTE  # a promotion, on a busy machine


@pytest.fixture
def address(serve: Any, world: Any) -> str:
    _, port = serve(world.registry, allow_changes=True)
    return f"http://127.0.0.1:{port}"


def test_an_adapter_is_edited_and_an_alias_moves_and_goes(page: Any, address: str, world: Any) -> None:
    registry, good = Registry.open(world.registry), world.adapters[0]
    visit(page, f"{address}/adapter?adapter={good}", "Adapter")
    page.get_by_role("button", name="Edit", exact=True).click()
    page.get_by_label("Note").fill("the one with few ranks")
    page.get_by_role("button", name="Save", exact=True).click()
    playwright.expect(page.get_by_text("The adapter was changed.")).to_be_visible(timeout=MINUTE)
    settle(page)
    assert registry.adapter(good).note == "the one with few ranks"
    for button, told, aliases in (
        ("Move it here", "The alias means this adapter.", ("prod",)),
        ("Remove it", "The alias was removed.", ()),
    ):
        page.get_by_role("button", name="Alias", exact=True).click()
        page.get_by_role("textbox", name="Alias").fill("prod")
        page.get_by_role("textbox", name="Reason").fill("it is the best")
        page.get_by_role("button", name=button).click()
        playwright.expect(page.get_by_text(told)).to_be_visible(timeout=MINUTE)
        settle(page)
        assert registry.adapter(good).aliases == aliases


def test_a_refused_model_is_let_out_with_a_reason_and_taken_back(
    page: Any, address: str, world: Any, tmp_path: Path
) -> None:
    registry, good = Registry.open(world.registry), world.adapters[0]
    visit(page, f"{address}/promote?adapter={good}&compare=false", "Promote")
    page.get_by_role("textbox", name="Folder to make").fill(str(tmp_path / "merged"))
    page.get_by_role("textbox", name="Alias that moves to this adapter").fill("prod")
    page.get_by_placeholder("Why this one, for the record").fill("the best")
    page.get_by_text("Where the base is, and what it is measured by").click()
    page.get_by_role("spinbutton", name="Tolerance").fill("-10")
    page.get_by_role("button", name="Promote", exact=True).click()
    refused = page.get_by_text("The last gate refused the model: it was not let out.")
    playwright.expect(refused).to_be_visible(timeout=LONG)
    assert not (tmp_path / "merged").exists()

    page.get_by_placeholder("Why it should go out although it was refused").fill("we know what we do")
    page.get_by_role("button", name="Let it out all the same").click()
    playwright.expect(page.get_by_text("It was let out all the same.")).to_be_visible(timeout=LONG)
    settle(page)
    assert (tmp_path / "merged" / "model.safetensors").is_file()
    assert registry.adapter("negation@prod").adapter_id == good

    page.get_by_placeholder("Why it is undone, for the record").fill("it was a trial")
    page.get_by_role("button", name="Undo the promotion").click()
    playwright.expect(page.get_by_role("button", name="Undo the promotion")).to_have_count(0, timeout=MINUTE)
    settle(page)
    assert [(record.status, record.forced) for record in registry.promotions()] == [
        ("undone", True),
        ("refused", False),
    ]
    assert registry.aliases() == []


def test_an_evaluation_is_started_and_its_figures_come(page: Any, address: str, world: Any) -> None:
    good = world.adapters[0]
    visit(page, f"{address}/evaluate?ids={good}&limit=8", "Evaluate")
    page.get_by_role("button", name="Start", exact=True).click()
    playwright.expect(page.get_by_role("heading", name="What got better, and what worse")).to_be_visible(timeout=LONG)
    settle(page)
    (recorded,) = Registry.open(world.registry).evaluations(good)
    assert recorded.dataset["rows"] == 8 and recorded.metrics["eval_loss"] < recorded.metrics["base_loss"]


def test_a_search_is_told_to_stop(page: Any, serve: Any, made: Any, resumed: Any, driven: Any) -> None:
    _, port = serve(made.path, allow_changes=True)
    with driven(resumed) as heard:
        visit(page, f"http://127.0.0.1:{port}/search", "Search")
        page.get_by_role("button", name="Stop the search").click()
        page.get_by_role("textbox", name="Why (may be empty)").fill("lunch")
        page.get_by_role("button", name="Stop all its trials").click()
        playwright.expect(page.get_by_text("The search was told to stop.")).to_be_visible(timeout=MINUTE)
    assert [(asked.kind, asked.why) for asked in heard] == [("stop_search", "lunch")]
