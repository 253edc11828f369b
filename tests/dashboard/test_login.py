"""Logging in, for real: a provider of identities on this machine, the real server, and a real browser."""

from __future__ import annotations

import json
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest

from rankloom_registry import Registry

playwright = pytest.importorskip(
    "playwright.sync_api", reason="Playwright is not installed: no page is seen in a real browser"
)
pytest.importorskip("authlib", reason="the extra 'login' is not installed: nobody can log in")
import jwt  # noqa: E402 - what needs it is skipped without the packages above
from cryptography.hazmat.primitives.asymmetric import rsa  # noqa: E402

pytestmark = pytest.mark.browser
ROLES = """
[roles]
promoter = ["ada@example.org"]
viewer = ["*@lab.example.org"]
"""
CLIENT, SECRET = "rankloom-tests", "not-a-secret"


class Provider:
    """A small OpenID Connect provider: whoever comes is who the test says, and needs no password.

    Attributes:
        claims: What it says of whoever comes next.
    """

    def __init__(self) -> None:
        self.claims: dict[str, Any] = {}
        self._nonces: dict[str, str] = {}
        self._key = rsa.generate_private_key(65537, 2048)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def secrets(self, roles: str) -> str:
        """The secrets of a dashboard that asks this provider."""
        return f"""
[auth]
redirect_uri = "http://127.0.0.1:{{port}}/oauth2callback"
cookie_secret = "{secrets.token_hex(32)}"
client_id = "{CLIENT}"
client_secret = "{SECRET}"
server_metadata_url = "{self.url}/.well-known/openid-configuration"
{roles}
"""

    def _discovery(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/keys",
            "response_types_supported": ["code"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": ["RS256"],
        }

    def _keys(self) -> dict[str, Any]:
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key()))
        return {"keys": [{**public, "kid": "one", "use": "sig", "alg": "RS256"}]}

    def _authorize(self, query: dict[str, str]) -> str:
        code = secrets.token_hex(8)
        self._nonces[code] = query["nonce"]
        return f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}"

    def _token(self, code: str) -> dict[str, Any]:
        now = int(time.time())
        claims = {"iss": self.url, "aud": CLIENT, "sub": "someone", "iat": now, "exp": now + 600}
        claims |= {"nonce": self._nonces.pop(code), **self.claims}
        token = jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": "one"})
        return {"access_token": secrets.token_hex(8), "token_type": "Bearer", "expires_in": 600, "id_token": token}

    def _handler(provider: Provider) -> type[BaseHTTPRequestHandler]:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                match parts.path:
                    case "/.well-known/openid-configuration":
                        self._answer(provider._discovery())
                    case "/keys":
                        self._answer(provider._keys())
                    case "/authorize":
                        self.send_response(302)
                        self.send_header("Location", provider._authorize(query))
                        self.end_headers()
                    case _:
                        self.send_error(404)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self._answer(provider._token(parse_qs(body)["code"][0]))

            def log_message(self, *_: object) -> None:
                pass

            def _answer(self, content: dict[str, Any]) -> None:
                text = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

        return Handler


@dataclass
class Guarded:
    """A dashboard that people log in to, and that lets them change what their role may."""

    provider: Provider
    url: str
    registry: Path
    made: Any


@pytest.fixture(scope="module")
def guarded(serve: Callable[..., Any], made_once: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    shutil.copytree(made_once.path.parent, folder, dirs_exist_ok=True)
    provider = Provider()
    (folder / ".streamlit").mkdir()
    (folder / ".streamlit" / "secrets.toml").write_text(provider.secrets(ROLES))
    registry = folder / made_once.path.name
    _, port = serve(registry, allow_changes=True, folder=folder)
    yield Guarded(provider=provider, url=f"http://127.0.0.1:{port}", registry=registry, made=made_once)
    provider.close()


class Visit:
    """A browser of somebody's own, and all that the server has sent to it."""

    def __init__(self, chromium: Any, guarded: Guarded) -> None:
        self.guarded, self.sent = guarded, b""
        self.context = chromium.new_context(viewport={"width": 1280, "height": 900})
        self.page = self.context.new_page()
        self.page.on("websocket", lambda socket: socket.on("framereceived", self._hear))

    def _hear(self, payload: str | bytes) -> None:
        self.sent += payload if isinstance(payload, bytes) else payload.encode()

    def see(self, text: str) -> None:
        playwright.expect(self.page.get_by_text(text).first).to_be_visible(timeout=60_000)

    def log_in(self, **claims: Any) -> None:
        self.guarded.provider.claims = claims
        self.page.goto(self.guarded.url)
        self.page.get_by_role("button", name="Log in").click(timeout=60_000)
        self.page.wait_for_url(re.compile(r":\d+/(?!authorize|oauth2callback)"), timeout=60_000)

    def knows_anything(self) -> bool:
        return b"lora-tiny" in self.sent or self.guarded.made.best.encode() in self.sent


@pytest.fixture
def visit(chromium: Any, guarded: Guarded) -> Iterator[Visit]:
    visit = Visit(chromium, guarded)
    yield visit
    visit.context.close()


@pytest.mark.parametrize("path", ["/", "/search", "/adapters", "/adapter?adapter={best}", "/promote?adapter={best}"])
def test_who_did_not_log_in_gets_a_button_and_no_data(visit: Visit, guarded: Guarded, path: str) -> None:
    visit.page.goto(guarded.url + path.format(best=guarded.made.best))
    playwright.expect(visit.page.get_by_role("button", name="Log in")).to_be_visible(timeout=60_000)
    visit.page.wait_for_timeout(500)
    assert visit.page.get_by_role("link", name="Searches").count() == 0
    assert b"Log in" in visit.sent and not visit.knows_anything()


@pytest.mark.parametrize(
    "claims",
    [
        {"email": "eve@elsewhere.example", "email_verified": True},
        {"email": "ada@example.org", "email_verified": False},
        {"email": "ada@example.org"},
        {},
    ],
    ids=["stranger", "not-verified", "not-said", "no-address"],
)
def test_who_is_not_among_those_who_may_look_gets_no_data(visit: Visit, claims: dict[str, Any]) -> None:
    visit.log_in(**claims)
    visit.see("not among those who may see this registry")
    assert not visit.knows_anything()


def test_a_viewer_sees_everything_and_may_change_nothing(visit: Visit, guarded: Guarded) -> None:
    visit.log_in(email="eve@lab.example.org", email_verified=True)
    visit.see("Latest searches")
    visit.see("eve@lab.example.org")
    assert visit.knows_anything()
    visit.page.goto(f"{guarded.url}/promote?adapter={guarded.made.best}")
    for name in ("Promote", "Undo the promotion"):
        button = visit.page.get_by_role("button", name=name, exact=True)
        playwright.expect(button).to_be_disabled(timeout=60_000)


def test_a_promoter_changes_things_in_their_own_name_and_leaves(visit: Visit, guarded: Guarded) -> None:
    visit.log_in(email="Ada@example.org", email_verified=True)
    visit.see("Latest searches")
    visit.page.goto(f"{guarded.url}/promote?adapter={guarded.made.best}")
    button = visit.page.get_by_role("button", name="Undo the promotion", exact=True)
    playwright.expect(button).to_be_enabled(timeout=60_000)
    visit.page.get_by_role("textbox", name="Reason").last.fill("it was wrong")
    button.click()
    playwright.expect(button).to_have_count(0, timeout=60_000)
    latest = Registry.open(guarded.registry).events(guarded.made.best)[0]
    assert (latest.kind, latest.who, latest.why) == ("promotion_undone", "Ada@example.org", "it was wrong")
    visit.page.get_by_role("button", name="Log out").click()
    playwright.expect(visit.page.get_by_role("button", name="Log in")).to_be_visible(timeout=60_000)
