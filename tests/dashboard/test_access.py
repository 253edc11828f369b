from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import streamlit as st

from rankloom_dashboard import LoginError, access, data
from rankloom_dashboard.launch import CHANGES_VARIABLE, REGISTRY_VARIABLE

ROLES = {"promoter": ["ada@example.org"], "editor": ["*@lab.example.org"], "viewer": ["*"]}


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bytes], None]]:
    """Puts a secrets file where Streamlit looks for one; at first there is none."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv(CHANGES_VARIABLE, "1")
    st.secrets._reset()

    def write(content: bytes) -> None:
        (tmp_path / ".streamlit").mkdir()
        (tmp_path / ".streamlit" / "secrets.toml").write_bytes(content)

    yield write
    st.secrets._reset()


def test_without_secrets_whoever_sits_here_may_change_what_the_start_allowed(secrets, monkeypatch) -> None:
    access.check()
    assert access.visitor() == access.Visitor(who="", role="promoter")
    monkeypatch.setenv(CHANGES_VARIABLE, "0")
    assert access.visitor() == access.Visitor(who="", role="viewer")
    assert access.may("viewer") and not access.may("editor")


def test_with_a_login_nobody_is_somebody_before_it(secrets) -> None:
    secrets(b'[auth]\nclient_id = "x"\n[roles]\npromoter = ["*"]\n')
    assert access.visitor() is None
    assert not access.may("viewer")
    assert access.address() is None


@pytest.mark.parametrize(
    "content",
    [
        b"[auth\nclient_id = 1",
        b"\xff\xfe",
        b'[roles]\nviewer = ["*"]\n',
        b'auth = "yes"\n',
        b'[auth]\n[roles]\npromotor = ["ada@example.org"]\n',
        b'[auth]\n[roles]\npromoter = "*@example.org"\n',
        b"[auth]\n[roles]\npromoter = [1]\n",
        b"[auth]\n[roles]\npromoter = 1\n",
        b'auth = {}\nroles = ["ada@example.org"]\n',
    ],
)
def test_what_is_wrong_with_the_secrets_lets_nobody_in(secrets, content: bytes) -> None:
    secrets(content)
    with pytest.raises(LoginError):
        access.check()
    with pytest.raises(LoginError):
        access.require("viewer")


def test_a_login_without_its_package_lets_nobody_in(secrets, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    access.check()
    secrets(b"[auth]\n[roles]\n")
    with pytest.raises(LoginError, match=r"install rankloom\[login\]"):
        access.check()


def test_a_variable_that_streamlit_takes_from_the_secrets_allows_nothing(secrets, monkeypatch) -> None:
    monkeypatch.setenv(CHANGES_VARIABLE, "0")
    secrets(f'{CHANGES_VARIABLE} = "1"\n'.encode())
    assert not access.changes_allowed()
    assert not access.may("editor")


@pytest.mark.parametrize(
    ("claims", "role"),
    [
        ({"email": "ada@example.org", "email_verified": True}, "promoter"),
        ({"email": "Ada@Example.ORG", "email_verified": True}, "promoter"),
        ({"email": "eve@lab.example.org", "email_verified": "true"}, "editor"),
        ({"email": "eve@lab.example.org.evil.example", "email_verified": True}, "viewer"),
        ({"email": "ada@example.org", "email_verified": False}, None),
        ({"email": "ada@example.org", "email_verified": "false"}, None),
        ({"email": "ada@example.org"}, None),
        ({"email": ["ada@example.org"], "email_verified": True}, None),
        ({"email": "", "email_verified": True}, None),
        ({"email_verified": True}, None),
    ],
)
def test_the_role_is_that_of_the_verified_address(claims: dict[str, object], role: str | None) -> None:
    assert access.role_of(claims, ROLES) == role


def test_addresses_without_a_word_on_them_count_only_if_that_is_said() -> None:
    said = {**ROLES, "trust_unverified_addresses": True}
    assert access.role_of({"email": "ada@example.org"}, said) == "promoter"
    assert access.role_of({"email": "ada@example.org", "email_verified": False}, said) is None


def test_nobody_has_a_role_that_is_not_given() -> None:
    assert access.role_of({"email": "ada@example.org", "email_verified": True}, {}) is None
    assert access.role_of({"email": "a@example.org", "email_verified": True}, {"viewer": ["[a-z]@example.org"]}) is None


def test_the_name_that_people_come_by_is_that_to_which_the_login_leads_back(secrets) -> None:
    assert access.public_hosts() == []
    secrets(b'[auth]\nredirect_uri = "https://adapters.example.org/oauth2callback"\n')
    assert access.public_hosts() == ["adapters.example.org"]


def test_the_secrets_in_the_documentation_are_what_is_read(secrets) -> None:
    text = (Path(__file__).parents[2] / "docs" / "dashboard.md").read_text(encoding="utf-8")
    example = text.split("```toml\n")[1].split("```")[0]
    secrets(example.encode())
    roles = st.secrets.to_dict()["roles"]
    assert access.public_hosts() == ["adapters.example.org"]
    assert access.role_of({"email": "ada@example.org", "email_verified": True}, roles) == "promoter"
    assert access.role_of({"email": "bob@example.org", "email_verified": True}, roles) == "viewer"


def test_what_the_secrets_say_becomes_no_variable(secrets, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(REGISTRY_VARIABLE, str(tmp_path / "mine.duckdb"))
    monkeypatch.setitem(access._AT_START, REGISTRY_VARIABLE, str(tmp_path / "mine.duckdb"))
    monkeypatch.delenv("PYTHONSTARTUP", raising=False)
    secrets(f'{REGISTRY_VARIABLE} = "theirs.duckdb"\nPYTHONSTARTUP = "evil.py"\n[auth]\n'.encode())
    for _ in range(2):
        assert access.login_configured()
        assert data.registry_path() == tmp_path / "mine.duckdb"
        assert "PYTHONSTARTUP" not in os.environ
        st.secrets._on_secrets_changed("the file")  # as Streamlit does when somebody has changed it


def test_an_address_that_is_none_opens_no_name(secrets) -> None:
    secrets(b'[auth]\nredirect_uri = "https://[adapters.example.org/oauth2callback"\n')
    assert access.public_hosts() == []
    with pytest.raises(LoginError, match="redirect_uri"):
        access.check()
