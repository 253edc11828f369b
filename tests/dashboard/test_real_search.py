"""A search that really trains is watched and steered in a real browser to its end, and then looked at on every page."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from browsing import MINUTE, playwright, points, settle, visit, wait_for_points

from rankloom_registry import Registry

pytestmark = [pytest.mark.browser, pytest.mark.slow]
LONG = 100_000  # steps: more than anybody waits for


@pytest.fixture
def search(tmp_path: Path, tiny_model: Path, rows_file: Path) -> Iterator[subprocess.Popen[str]]:
    """A search of two trials in a program of its own, which end when somebody stops them."""
    config = {
        "model_name_or_path": str(tiny_model),
        "dataset": str(rows_file),
        "space": "lora-small",
        "name": "watched",
        "num_samples": 2,
        "scheduler": "fifo",
        "training": {"max_steps": LONG, "eval_steps": 20, "max_length": 48, "per_device_train_batch_size": 1},
        "registry": str(tmp_path / "registry.duckdb"),
    }
    (tmp_path / "search.yaml").write_text(json.dumps(config))  # YAML holds JSON
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    started = subprocess.Popen(
        [sys.executable, "-c", "from rankloom.cli import main; main()", "search", str(tmp_path / "search.yaml")],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    yield started
    if started.poll() is None:
        started.send_signal(signal.SIGINT)
    started.communicate(timeout=120)


def stop(page: playwright.Page, number: int, why: str) -> None:
    page.get_by_role("button", name="Stop a trial").click()
    chosen = page.get_by_role("combobox", name="Trial", exact=True)
    chosen.click()
    page.get_by_role("option", name=f"trial {number} ·").click()
    reason = page.get_by_label("Why (may be empty)")
    reason.fill(why)
    reason.press("Tab")
    page.get_by_role("button", name=f"Stop trial {number}", exact=True).click()
    playwright.expect(page.get_by_text(f"Trial {number} was told to stop.")).to_be_visible(timeout=MINUTE)
    page.keyboard.press("Escape")
    playwright.expect(reason).to_have_count(0)


@pytest.mark.parametrize("page", [("light", 1280)], indirect=True)
def test_a_search_is_watched_steered_and_looked_at(
    page: playwright.Page,
    serve: Callable[..., tuple[subprocess.Popen[str], int]],
    tmp_path: Path,
    search: subprocess.Popen[str],
) -> None:
    path = tmp_path / "registry.duckdb"
    _, port = serve(path, allow_changes=True)
    address = f"http://127.0.0.1:{port}"
    page.goto(f"{address}/search")
    for _ in range(120):  # the search starts its cluster, and then registers
        settle(page)
        if page.get_by_text("of 2 trials finished").count():
            break
        page.wait_for_timeout(500)
        page.reload()
    playwright.expect(page.get_by_text("0 of 2 trials finished")).to_be_visible(timeout=MINUTE)

    page.evaluate("window.neverReloaded = true")
    # A lane starts first, and loads its base.
    few = wait_for_points(page, lambda found: found > 2, seconds=180)
    wait_for_points(page, lambda found: found > few)
    stop(page, 0, "it learns nothing")
    playwright.expect(page.get_by_text("1 of 2 trials finished")).to_be_visible(timeout=MINUTE)
    page.get_by_role("button", name="Add trials").click()
    page.get_by_label("How many more").fill("1")
    page.get_by_label("How many more").press("Enter")
    page.get_by_role("button", name="Add 1 trial", exact=True).click()
    playwright.expect(page.get_by_text("1 of 3 trials finished")).to_be_visible(timeout=MINUTE)
    stop(page, 1, "enough")
    playwright.expect(page.get_by_text("2 of 3 trials finished")).to_be_visible(timeout=MINUTE)
    many = points(page)
    wait_for_points(page, lambda found: found > many)
    stop(page, 2, "enough")
    playwright.expect(page.get_by_text("trials finished")).to_have_count(0, timeout=2 * MINUTE)
    playwright.expect(page.get_by_text("completed", exact=True).first).to_be_visible()
    assert page.evaluate("window.neverReloaded")
    assert points(page) > many
    output, _ = search.communicate(timeout=120)
    assert search.returncode == 0, output

    registry = Registry.open(path)
    found = registry.search("watched")
    trials = registry.trials("watched")
    assert (found.status, found.num_samples) == ("completed", 3)
    assert [(trial.status, trial.message.split(": ")[1]) for trial in trials] == [
        ("stopped", "it learns nothing"),
        ("stopped", "enough"),
        ("stopped", "enough"),
    ]
    ids = [trial.adapter_id for trial in trials]
    assert None not in ids
    for name, title in (
        ("", "Overview"),
        (f"search?search={found.search_id}", "Search"),
        ("adapters", "Adapters"),
        (f"adapter?adapter={ids[0]}", "Adapter"),
        (f"compare?ids={','.join(map(str, ids))}", "Compare adapters"),
        (f"evaluate?ids={ids[0]}", "Evaluate"),
        (f"playground?ids={ids[0]}", "Playground"),
        (f"promote?adapter={ids[0]}", "Promote"),
    ):
        visit(page, f"{address}/{name}", title)
        playwright.expect(page.locator('[data-testid="stAlertContentError"]')).to_have_count(0)
