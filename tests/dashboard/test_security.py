"""The server as a whole: what it tells browsers, whom it answers, and that it changes nothing unless it was told to."""

from __future__ import annotations

import hashlib
import http.client
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankloom_dashboard.server import HEADERS

# What a user's own Streamlit files and variables may say; nothing of it counts.
LOOSE = """
[server]
enableCORS = false
enableXsrfProtection = false
enableAgentApi = true
allowedHosts = ["*"]
corsAllowedOrigins = ["http://evil.example"]
trustedUserHeaders = '{"X-User": "email"}'
enableStaticServing = true
baseUrlPath = "elsewhere"
[browser]
gatherUsageStats = true
[client]
toolbarMode = "developer"
showErrorDetails = "full"
"""


@pytest.fixture(scope="module")
def loose(serve: Callable[..., Any], made_once: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A server for reading, in a folder whose settings would open it; its registry and its port."""
    folder = tmp_path_factory.mktemp("loose")
    shutil.copytree(made_once.path.parent, folder, dirs_exist_ok=True)
    (folder / ".streamlit").mkdir()
    (folder / ".streamlit" / "config.toml").write_text(LOOSE)
    _, port = serve(folder / made_once.path.name, folder=folder)
    return folder / made_once.path.name, port


def ask(port: int, method: str, path: str, **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    return connection.getresponse()


def open_socket(port: int, **headers: str) -> int:
    """Asks for the connection over which pages get their data; returns the status of the answer."""
    key = {"Sec_WebSocket_Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec_WebSocket_Version": "13"}
    return ask(port, "GET", "/_stcore/stream", Connection="Upgrade", Upgrade="websocket", **key, **headers).status


@pytest.mark.parametrize("path", ["/", "/promote", "/_stcore/health", "/_stcore/host-config", "/nothing/here"])
def test_every_answer_keeps_the_browser_to_this_machine(loose: tuple[Path, int], path: str) -> None:
    answer = ask(loose[1], "GET", path)
    assert {name: answer.headers.get_all(name) for name in HEADERS} == {name: [text] for name, text in HEADERS.items()}
    assert "'unsafe-eval'" not in HEADERS["content-security-policy"]
    assert "http" not in HEADERS["content-security-policy"]


def test_foreign_pages_and_foreign_names_get_no_connection(loose: tuple[Path, int]) -> None:
    _, port = loose
    own = f"127.0.0.1:{port}"
    assert open_socket(port, Host=own, Origin=f"http://{own}") == 101
    assert open_socket(port, Host=own, Origin="http://evil.example") == 403
    assert open_socket(port, Host=own, Origin="null") == 403
    assert open_socket(port, Host=f"evil.example:{port}", Origin=f"http://evil.example:{port}") == 403


def test_no_program_drives_the_pages_and_no_header_names_a_user(loose: tuple[Path, int]) -> None:
    _, port = loose
    for path in ("interact", "mcp"):
        answer = ask(port, "POST", f"/_stcore/agent/{path}", Content_Type="application/json", X_User="ada@example.org")
        assert b"not_available" in answer.read()
    assert ask(port, "GET", "/app/static/config.toml").read().lower().startswith(b"<!--")  # the page, not the file
    settings = json.loads(ask(port, "GET", "/_stcore/host-config").read())
    assert settings["allowedOrigins"] == [f"http://127.0.0.1:{port}"]


def state(folder: Path) -> dict[str, str]:
    """Every file of a folder, but the empty one by which programs wait for their turn."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


@pytest.mark.browser
def test_for_reading_nothing_that_can_be_clicked_changes_anything(
    chromium: Any, loose: tuple[Path, int], made_once
) -> None:
    registry, port = loose
    before = state(registry.parent)
    from playwright.sync_api import Error

    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    asked: set[str] = set()
    page.on("request", lambda sent: asked.add(sent.url.split("/")[2].split(":")[0] if "//" in sent.url else ""))
    address = f"http://127.0.0.1:{port}"
    page.goto(address)
    page.get_by_role("heading", name="Overview").wait_for(timeout=60_000)
    names = page.get_by_test_id("stTopNavLink").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    assert len(names) >= 6
    clicked = 0
    for name in names:
        page.goto(f"{name}?adapter={made_once.best}&ids={made_once.best},{made_once.second}")
        page.get_by_role("heading", level=1).wait_for(timeout=60_000)
        settle(page)
        page.wait_for_timeout(1_000)  # parts that draw themselves again have their buttons by then
        for at in range(page.locator("[data-testid=stMain] button:visible").count()):
            button = page.locator("[data-testid=stMain] button:visible").nth(at)
            try:
                if button.count() and button.is_enabled(timeout=5_000):
                    button.click(timeout=5_000, force=True)
                    clicked += 1
            except Error:  # it went, or shows only under the mouse: the page was drawn again
                continue
            settle(page)
            page.keyboard.press("Escape")
    context.close()
    assert clicked > 10
    assert asked - {""} == {"127.0.0.1"}
    assert state(registry.parent) == before


def settle(page: Any) -> None:
    page.locator('[data-testid="stApp"][data-test-script-state="notRunning"]').wait_for(timeout=60_000)
