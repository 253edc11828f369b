from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankloom.cli.signing import PASSWORD
from rankloom_registry import Registry
from rankloom_registry.signing import verify

Keys = tuple[Path, Path]
Rankloom = Callable[..., Any]


def test_signed_at_promotion_and_checked_when_loaded(
    rankloom: Rankloom, world: Any, tmp_path: Path, keys: Keys, make_keys: Callable[..., Keys]
) -> None:
    good, slow = world.adapters
    flags = ("--registry", world.registry)
    trusted = ("--public-key", keys[1], *flags)
    unsigned = rankloom("evaluate", good, *trusted)
    assert unsigned.code == 1 and f"adapter {good}: " in unsigned.err and "is not signed" in unsigned.err
    done = rankloom("promote", good, "--output", "out", "--format", "adapter", "--sign-key", keys[0], *flags)
    assert done.code == 0 and str(tmp_path / "out" / "model.sig") in done.out.replace("\n", "")
    verify(tmp_path / "out", public_key=keys[1])

    assert rankloom("evaluate", good, "--json", *trusted).json["eval_loss"] > 0
    checked = rankloom("adapters", "verify", good, *trusted)
    assert checked.code == 0 and checked.out == f"{good}: every file is what was registered and signed\n"
    every = rankloom("adapters", "verify", *trusted)
    assert every.code == 1 and every.err.count("\n") == 1
    assert f"error: {slow} (negation): " in every.err and "is not signed" in every.err
    found = rankloom("adapters", "verify", "--json", *trusted).json
    assert found["verified"] is False
    assert {one["adapter_id"]: one["verified"] for one in found["adapters"]} == {good: True, slow: False}
    other = rankloom("adapters", "verify", good, "--public-key", make_keys()[1], *flags)
    assert other.code == 1 and "is not what was signed" in other.err


def test_a_key_that_cannot_sign_is_refused_before_anything_is_read(
    rankloom: Rankloom, world: Any, tmp_path: Path, make_keys: Callable[..., Keys], monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = make_keys(password="secret")
    command = ("promote", world.adapters[0], "--output", "out", "--format", "adapter", "--registry", world.registry)
    for useless in (tmp_path / "none.pem", public, private):
        # Nobody has asked yet whether there is such an adapter.
        refused = rankloom("promote", "no-such-adapter", *command[2:], "--sign-key", useless)
        assert refused.code == 1 and refused.err.startswith(f"error: cannot sign with {useless}: ")
        assert refused.err.count("\n") == 1
    assert rankloom(*command, "--sign-key", private, "--sign-sigstore").code == 2
    assert not (tmp_path / "out").exists() and Registry.open(world.registry).promotions() == []
    monkeypatch.setenv(PASSWORD, "secret")
    assert rankloom(*command, "--sign-key", private).code == 0
    verify(tmp_path / "out", public_key=public)


def test_who_must_have_signed_is_said_whole(rankloom: Rankloom, world: Any, tmp_path: Path) -> None:
    for half in (("--identity", "a@b.org"), ("--identity", ""), ("--oidc-issuer", "https://accounts.google.com")):
        done = rankloom("adapters", "verify", *half, "--registry", world.registry)
        assert done.code == 1 and done.out == "" and "oidc_issuer" in done.err
    pytest.importorskip("model_signing", reason="the extra 'signing' is not installed")
    missing = rankloom("adapters", "verify", "--public-key", tmp_path / "none.pub", "--registry", world.registry)
    assert missing.code == 1 and missing.out == "" and "none.pub" in missing.err


def test_the_dashboard_refuses_a_key_that_it_could_not_check_by(rankloom: Rankloom, tmp_path: Path, keys: Keys) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    refused = rankloom("dashboard", "--headless", "--port", port, "--public-key", tmp_path / "none.pub")
    assert refused.code == 1 and refused.out == "" and refused.err.count("\n") == 1
    assert refused.err.startswith(f"error: cannot check signatures against {tmp_path / 'none.pub'}: ")
