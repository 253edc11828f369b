"""The program that serves the pages: Streamlit, under settings that no file and no variable of the user can change.

It is run by its path, not with `-m`, which would let a file in the user's folder stand for a library.
"""

from __future__ import annotations

import base64
import hashlib
import importlib
import logging
import re
import sys
from pathlib import Path
from typing import Any

import streamlit
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit.starlette import App

from rankloom_dashboard import access
from rankloom_dashboard.launch import ADDRESS


def _inline_scripts() -> str:
    """Returns what allows the scripts that Streamlit's own page holds, and no others."""
    page = Path(streamlit.__file__).with_name("static") / "index.html"
    scripts = re.findall(r"<script>(.*?)</script>", page.read_text(encoding="utf-8"), re.DOTALL)
    hashes = (base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts)
    return "".join(f" 'sha256-{text}'" for text in hashes)


# The browser itself refuses what would leave this machine, whatever a page says; charts need blobs and WebAssembly.
_POLICY = {
    "default-src": "'self'",
    "script-src": "'self' 'wasm-unsafe-eval'" + _inline_scripts(),
    "style-src": "'self' 'unsafe-inline'",
    "img-src": "'self' data: blob:",
    "font-src": "'self' data:",
    "worker-src": "'self' blob:",
    "object-src": "'none'",
    "base-uri": "'self'",
    "form-action": "'self'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in _POLICY.items()),
    "x-frame-options": "DENY",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class SafeHeaders:
    """Adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp) -> None:
        """Stand before another application."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [pair for pair in message["headers"] if pair[0].decode() not in HEADERS] + own
            await send(message)

        await self._app(scope, receive, send_safely)


def settings(port: int) -> dict[str, Any]:
    """Returns Streamlit's settings, which outrank its files and variables.

    Args:
        port: TCP port on this machine.
    """
    here = f"http://{ADDRESS}:{port}"
    return {
        "server.address": ADDRESS,
        "server.port": port,
        "server.headless": True,  # launch.py opens the browser; Streamlit would offer to install things, too
        # A foreign name that is made to resolve to this machine gets no data, and a foreign page no connection.
        "server.allowedHosts": [ADDRESS, "localhost", *access.public_hosts()],
        "server.corsAllowedOrigins": [here],
        "server.enableCORS": True,
        "server.enableXsrfProtection": True,
        "server.trustedUserHeaders": "{}",  # nobody is who a header says
        "server.enableAgentApi": False,
        "server.enableStaticServing": False,
        "server.fileWatcherType": "none",
        "server.showEmailPrompt": False,
        "server.baseUrlPath": "",
        "browser.serverAddress": ADDRESS,
        "browser.gatherUsageStats": False,
        "client.allowedOrigins": [here],
        "client.toolbarMode": "viewer",
        "client.showErrorDetails": "none",
        "client.showErrorLinks": "false",
        "logger.hideWelcomeMessage": True,
    }


def preload() -> None:
    """Imports what the first visitor would otherwise wait for: the larger libraries load parts when they are used."""
    import pandas
    import plotly.graph_objects as go
    import plotly.io

    for name in ("rankloom.control", "rankloom.outputs", "rankloom_registry"):
        importlib.import_module(name)
    plotly.io.to_json(go.Figure([go.Scatter(x=[0]), go.Heatmap(z=[[0]])]))
    pandas.DataFrame({"a": [0]}).style.to_html()


app = App(Path(__file__).with_name("app.py"), middleware=[Middleware(SafeHeaders)])

if __name__ == "__main__":
    # Reading the secrets needs settings, too, and Streamlit would warn that the rest comes after them.
    logging.getLogger("streamlit.config").disabled = True
    preload()
    app.run(config=settings(int(sys.argv.pop())))
