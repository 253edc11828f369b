from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import streamlit as st
from made_registry import Made, base, build
from streamlit.testing.v1 import AppTest

import rankloom_dashboard
from rankloom_dashboard.jobs.job import board
from rankloom_dashboard.launch import CHANGES_VARIABLE, REGISTRY_VARIABLE
from rankloom_registry import (
    AdapterAdded,
    BaseFingerprint,
    BaseSeen,
    Evaluated,
    Registry,
    SearchEnded,
    SearchResumed,
)

APP = Path(rankloom_dashboard.__file__).with_name("app.py")
# Markup of each kind that a page might take for its own.
HOSTILE = (
    "![x](http://evil.example/a.png) <img src='http://evil.example/b.png'> <script>alert(1)</script> **b** $x^2$ "
    ":material/home:"
)
READ_AS_MARKDOWN = (
    "title",
    "header",
    "subheader",
    "caption",
    "markdown",
    "info",
    "warning",
    "error",
    "success",
    "metric",
)
CHROMIUM_FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


@pytest.fixture(scope="session")
def fingerprint() -> BaseFingerprint:
    """That of the base of the registry's adapters."""
    return base()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return build(tmp_path_factory.mktemp("registry"))


@pytest.fixture
def made(made_once: Made, tmp_path: Path) -> Made:
    """A copy of the registry for the test alone, to change at will."""
    shutil.copytree(made_once.path.parent, tmp_path, dirs_exist_ok=True)
    return replace(made_once, path=tmp_path / made_once.path.name)


@pytest.fixture
def changing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts the dashboard allows changes."""
    monkeypatch.setenv(CHANGES_VARIABLE, "1")


@pytest.fixture
def resumed(made: Made, make_run: Callable[..., Any]) -> Any:
    """The run of the registry's search, which was resumed."""
    with Registry.open(made.path) as registry:
        registry.record(SearchResumed(search_id=made.search_id))
        search = registry.search(made.search_id)
    return make_run(
        made.path.with_suffix(".runs") / search.name,
        search_id=search.search_id,
        base_content_root=search.base_content_root,
    )


@dataclass(frozen=True)
class Hostile(Made):
    """A registry that also holds an imported adapter on another base, and a text that must stay a text."""

    imported: str
    text: str


@pytest.fixture(scope="session")
def hostile(made_once: Made, tmp_path_factory: pytest.TempPathFactory) -> Hostile:
    folder = shutil.copytree(made_once.path.parent, tmp_path_factory.mktemp("hostile") / "registry")
    with Registry.open(folder / made_once.path.name) as registry:
        known = registry.adapter(made_once.best)
        registry.record(
            BaseSeen(base=replace(base("d1"), identity=HOSTILE, dtype=HOSTILE)),
            AdapterAdded(
                adapter_id="imported-1",
                name="imported",
                base_content_root="d1" * 32,
                params=known.params | {"target_modules": HOSTILE, HOSTILE: HOSTILE},
                metrics={"eval_loss": 1.9},
                artifact_sha256=known.artifact_sha256,
            ),
            Evaluated(
                evaluation_id="e-2",
                adapter_id="imported-1",
                base_content_root="d1" * 32,
                dataset={"name": HOSTILE},
                metrics={HOSTILE: 1.0},
            ),
            SearchEnded(search_id=made_once.search_id, status="failed", message=HOSTILE),
        )
    same = {field.name: getattr(made_once, field.name) for field in fields(Made)}
    return Hostile(**same | {"path": folder / made_once.path.name, "imported": "imported-1", "text": HOSTILE})


@pytest.fixture(scope="session")
def hostile_text() -> str:
    """A text that must stay a text."""
    return HOSTILE


@pytest.fixture(scope="session")
def read_as_markdown() -> Callable[[AppTest], str]:
    """Everything on a page that Streamlit reads as Markdown, which nothing that others wrote may be."""

    def read(app: AppTest) -> str:
        elements = [element for kind in READ_AS_MARKDOWN for element in getattr(app, kind)]
        found = [f"{element.value} {getattr(element, 'label', '')}" for element in elements]
        return "\n".join((*found, *(expander.label for expander in app.expander)))

    return read


@pytest.fixture(scope="session")
def press() -> Callable[[AppTest, str], AppTest]:
    """Presses the one button of a page that has that label."""

    def press(app: AppTest, label: str) -> AppTest:
        (button,) = (button for button in app.button if button.label == label)
        return button.click().run()

    return press


@pytest.fixture
def own_jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No work of the dashboard but the test's own, which ends with it."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    board.clear()
    yield
    for job in board().all():
        job.cancel()
        job.wait(60)


@pytest.fixture
def run_page(monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """Runs a page of the dashboard on a registry, at an address."""

    def run(registry: Path, page: str = "views/overview.py", /, **query: str) -> AppTest:
        st.cache_data.clear()
        app = AppTest.from_file(APP, default_timeout=30)
        if page != "views/overview.py":
            # A page other than the first is known only after a run; one without a registry is the quickest.
            monkeypatch.setenv(REGISTRY_VARIABLE, str(registry.with_name("nowhere.duckdb")))
            app.run().switch_page(page)
        monkeypatch.setenv(REGISTRY_VARIABLE, str(registry))
        app.query_params.clear()
        app.query_params.update(query)
        return app.run()

    return run


@pytest.fixture(scope="module")
def serve() -> Iterator[Callable[..., tuple[subprocess.Popen[str], int]]]:
    """Launches the dashboard as the command line does, in a program of its own; returns it and its port."""
    started: list[subprocess.Popen[str]] = []

    def start(
        registry: Path, *, allow_changes: bool = False, folder: Path | None = None
    ) -> tuple[subprocess.Popen[str], int]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        program = (
            "import sys; from pathlib import Path; from rankloom_dashboard import launch; "
            f"sys.exit(launch(Path(sys.argv[1]), int(sys.argv[2]), headless=True, allow_changes={allow_changes}))"
        )
        server = subprocess.Popen(
            [sys.executable, "-c", program, str(registry), str(port)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(server)
        wait_until_healthy(port)
        return server, port

    yield start
    for server in started:
        server.terminate()
        server.communicate(timeout=30)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real browser, where there is one; for one module, as Playwright keeps an event loop running."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="Playwright is not installed: no page is seen in a real browser"
    )
    with playwright.sync_playwright() as driver:
        found = shutil.which("chromium") or driver.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("no Chromium here: no page is seen in a real browser, and no request is watched")
        browser = driver.chromium.launch(executable_path=found, args=list(CHROMIUM_FLAGS))
        yield browser
        browser.close()


@pytest.fixture(params=[("light", 1280), ("dark", 390)], ids=lambda shape: f"{shape[0]}-{shape[1]}")
def page(request: pytest.FixtureRequest, chromium: Any) -> Iterator[Any]:
    """A page that has asked nobody but this machine, and has nothing to complain of, when the test ends."""
    scheme, width = request.param
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    asked: set[str] = set()
    complaints: list[str] = []
    page.on("request", lambda sent: asked.add(urlsplit(sent.url).hostname or ""))
    page.on("websocket", lambda socket: asked.add(urlsplit(socket.url).hostname or ""))
    page.on("console", lambda said: complaints.append(said.text) if said.type == "error" and not probe(said) else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
    yield page
    context.close()
    assert asked - {""} == {"127.0.0.1"}
    assert complaints == []


def probe(said: Any) -> bool:
    """Streamlit's own search for its root: below a page it asks there first, and is told that it is not there."""
    return bool(re.search(r"/[a-z]+/_stcore/(health|host-config)$", said.location.get("url", "")))


def wait_until_healthy(port: int, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=5) as answer:
                assert answer.read() == b"ok"
                return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
