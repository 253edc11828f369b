from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rankloom_registry import MissingPackageError, SignatureError
from rankloom_registry.signing import SIGNATURE, Signer, Verifier, sign, verify

Keys = tuple[Path, Path]


@pytest.fixture
def signed(keys: Keys, adapter_folder: Callable[..., Path]) -> Path:
    folder = adapter_folder("signed")
    assert sign(folder, private_key=keys[0]) == folder / SIGNATURE
    return folder


def test_what_was_signed_is_accepted_wherever_it_lies(signed: Path, keys: Keys, tmp_path: Path) -> None:
    verify(signed, public_key=keys[1])
    verify(shutil.copytree(signed, tmp_path / "elsewhere" / "renamed"), public_key=keys[1])
    bundle = json.loads((signed / SIGNATURE).read_text())
    assert bundle["mediaType"].startswith("application/vnd.dev.sigstore.bundle")


def change(name: str) -> Callable[[Path], object]:
    def flip(folder: Path) -> None:
        content = bytearray((folder / name).read_bytes())
        content[-1] ^= 1
        (folder / name).write_bytes(content)

    return flip


@pytest.mark.parametrize(
    ("tamper", "named"),
    [
        (change("adapter_model.safetensors"), "adapter_model.safetensors"),
        (change("adapter_config.json"), "adapter_config.json"),
        (lambda folder: (folder / "extra.py").write_text("import os"), "extra.py"),
        (lambda folder: (folder / ".gitattributes").write_text("x"), ".gitattributes"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "adapter_config.json"),
        (lambda folder: (folder / "adapter_config.json").rename(folder / "renamed.json"), "renamed.json"),
        (lambda folder: (folder / "link.json").symlink_to("adapter_config.json"), "link.json"),
    ],
    ids=["weights", "config", "added", "added for Git", "gone", "renamed", "link"],
)
def test_what_changed_is_named(signed: Path, keys: Keys, tamper: Callable[[Path], object], named: str) -> None:
    tamper(signed)
    with pytest.raises(SignatureError, match=named) as caught:
        verify(signed, public_key=keys[1])
    assert "Digest" not in str(caught.value)


def test_another_key_is_refused(signed: Path, make_keys: Callable[..., Keys]) -> None:
    private, public = make_keys()
    with pytest.raises(SignatureError, match="not what was signed"):
        verify(signed, public_key=public)
    sign(signed, private_key=private)  # again, by another
    verify(signed, public_key=public)


def test_the_signature_of_other_files_is_refused(signed: Path, keys: Keys, adapter_folder: Callable[..., Path]) -> None:
    other = adapter_folder("other", weight=0.75)
    shutil.copy(signed / SIGNATURE, other)
    with pytest.raises(SignatureError, match=r"adapter_model\.safetensors"):
        verify(other, public_key=keys[1])


@pytest.mark.parametrize("content", ["", "{}", "[]", "not JSON", '{"verificationMaterial": {}}', "null", "\0"])
def test_a_damaged_signature_is_refused(signed: Path, keys: Keys, content: str) -> None:
    (signed / SIGNATURE).write_text(content)
    with pytest.raises(SignatureError):
        verify(signed, public_key=keys[1])


def test_a_changed_statement_is_refused(signed: Path, keys: Keys) -> None:
    import base64

    bundle = json.loads((signed / SIGNATURE).read_text())
    statement = base64.b64decode(bundle["dsseEnvelope"]["payload"])
    (signed / "extra.txt").write_text("")
    statement = statement.replace(b"model.sig", b"extra.txt")
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(statement).decode()
    (signed / SIGNATURE).write_text(json.dumps(bundle))
    with pytest.raises(SignatureError):
        verify(signed, public_key=keys[1])


def test_a_signature_may_lie_elsewhere(keys: Keys, adapter_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter_folder()
    assert sign(folder, private_key=keys[0], signature=tmp_path / "outside.sig") == tmp_path / "outside.sig"
    assert not (folder / SIGNATURE).exists()
    verify(folder, public_key=keys[1], signature=tmp_path / "outside.sig")
    with pytest.raises(SignatureError, match="is not signed"):
        verify(folder, public_key=keys[1])


def test_keys(make_keys: Callable[..., Keys], adapter_folder: Callable[..., Path], tmp_path: Path) -> None:
    folder = adapter_folder()
    for kind in ("P-384", "P-521"):
        private, public = make_keys(kind)
        sign(folder, private_key=private)
        verify(folder, public_key=public)
    private, public = make_keys(password="secret")
    sign(folder, private_key=private, password="secret")
    verify(folder, public_key=public)
    for wrong in ({"password": None}, {"password": "other"}):
        with pytest.raises(SignatureError, match="cannot sign"):
            sign(folder, private_key=private, **wrong)
    for useless in (make_keys("RSA")[0], public, tmp_path / "none.pem"):
        with pytest.raises(SignatureError, match="cannot sign"):
            sign(folder, private_key=useless)
    verify(folder, public_key=public)  # what failed left the signature as it was


def test_a_key_is_read_before_there_is_work(
    make_keys: Callable[..., Keys], adapter_folder: Callable[..., Path]
) -> None:
    private, public = make_keys()
    signer, verifier = Signer(private), Verifier(public)
    private.unlink()
    public.unlink()
    for folder in (adapter_folder("one"), adapter_folder("two", weight=0.75)):
        signer.sign(folder)
        verifier.verify(folder)
    with pytest.raises(SignatureError, match=r"cannot sign with .*key\.pem"):
        Signer(private)
    with pytest.raises(SignatureError, match=r"cannot check signatures against .*key\.pub"):
        Verifier(public)


def test_what_to_check_against_is_said(signed: Path, keys: Keys) -> None:
    both = {"public_key": keys[1], "identity": "a", "oidc_issuer": "b"}
    for nothing in ({}, {"identity": "a@b.org"}, {"public_key": keys[1], "identity": "a"}, both):
        with pytest.raises(SignatureError, match="public key"):
            verify(signed, **nothing)


def test_its_own_tool_accepts_the_signature(signed: Path, keys: Keys) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed)]
    options = ["--signature", str(signed / SIGNATURE), "--public_key", str(keys[1])]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_package_is_optional(monkeypatch: pytest.MonkeyPatch, adapter_folder: Callable[..., Path]) -> None:
    folder = adapter_folder()
    (folder / SIGNATURE).write_text("{}")
    for name in [name for name in sys.modules if name.partition(".")[0] == "model_signing"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "model_signing", None)
    with pytest.raises(MissingPackageError, match=r"rankloom\[signing\]"):
        sign(folder, private_key="key.pem")
    with pytest.raises(MissingPackageError, match=r"rankloom\[signing\]"):
        verify(folder, public_key="key.pub")
