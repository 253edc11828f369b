"""Signatures on the pages: checked against the key that the server was started with, and against no other."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from rankloom_dashboard import launch
from rankloom_dashboard.launch import KEY_VARIABLE
from rankloom_registry import Promoted, Registry, SignatureError
from rankloom_registry.signing import Signer

Keys = tuple[Path, Path]
ADAPTER, PROMOTE = "views/adapter.py", "views/promote.py"
ADVICE = "rankloom dashboard --public-key KEY.pub"


def press(app: AppTest, label: str) -> AppTest:
    (button,) = (button for button in app.button if button.label == label)
    return button.click().run()


def codes(app: AppTest) -> str:
    return "\n".join(code.value for code in app.code)


def said(app: AppTest) -> tuple[list[str], list[str]]:
    assert not app.exception
    return [one.value for one in app.success], [one.value for one in app.error]


@pytest.fixture
def files(run_page: Callable[..., AppTest], made: Any) -> Callable[[], AppTest]:
    """Shows the files of an adapter, and verifies them."""

    def show() -> AppTest:
        return press(run_page(made.path, ADAPTER, adapter=made.best, part="Fingerprint"), "Verify files")

    return show


def test_an_adapter_is_verified_against_the_key_of_the_start(
    files: Callable[[], AppTest], made: Any, keys: Keys, make_keys: Callable[..., Keys], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry.open(made.path)
    adapter = registry.adapter(made.best)
    app = files()
    assert said(app) == (["The files are what the registry recorded."], [])
    assert ADVICE not in codes(app)

    monkeypatch.setenv(KEY_VARIABLE, str(keys[1]))
    app = files()
    assert said(app) == ([], ["It is not shown that the key signed these files."])
    assert "is not signed" in codes(app)

    signature = registry.sign(adapter, Signer(keys[0]))
    app = files()
    assert said(app) == (["The files are what the registry recorded, and what the key signed."], [])
    assert str(signature) in codes(app) and not app.text_input

    monkeypatch.setenv(KEY_VARIABLE, str(make_keys()[1]))
    app = files()
    assert said(app) == ([], ["It is not shown that the key signed these files."])
    assert "is not what was signed" in codes(app)

    monkeypatch.setenv(KEY_VARIABLE, "")
    app = files()
    assert said(app) == (["The files are what the registry recorded."], [])
    assert ADVICE in codes(app)

    monkeypatch.setenv(KEY_VARIABLE, str(keys[1]))
    assert adapter.artifact_path is not None
    weights = adapter.artifact_path / "adapter_model.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    assert said(files()) == ([], ["The files are not what the registry recorded."])


def test_a_promoted_folder_is_verified_where_it_was_signed(
    run_page: Callable[..., AppTest],
    made: Any,
    keys: Keys,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    own_jobs: None,
) -> None:
    registry = Registry.open(made.path)
    folder = tmp_path / "merged"
    shutil.copytree(registry.checkout(registry.adapter(made.best)), folder)
    folder.chmod(0o755)
    promotion = Promoted(
        promotion_id="p-2",
        adapter_id=made.best,
        status="done",
        recipe="full-precision",
        format="safetensors",
        output_path=str(folder),
        output_sha256="ef" * 32,
        checks={"signed": True},
    )
    registry.record(promotion)
    Signer(keys[0]).sign(folder)
    assert ADVICE in codes(run_page(made.path, PROMOTE, adapter=made.best))
    monkeypatch.setenv(KEY_VARIABLE, str(keys[1]))
    app = press(run_page(made.path, PROMOTE, adapter=made.best), "Verify signature")  # of two promotions one is signed
    assert said(app) == (["The folder holds what the key signed, and nothing else."], [])
    (folder / "extra.py").write_text("import os")
    app = press(app, "Verify signature")
    assert said(app) == ([], ["It is not shown that the key signed these files."])
    assert "extra.py" in codes(app)


def test_a_key_of_no_use_is_refused_before_anything_is_served(tmp_path: Path, keys: Keys) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    for useless in (tmp_path / "none.pub", tmp_path, keys[0]):
        with pytest.raises(SignatureError, match=f"cannot check signatures against {useless}"):
            launch(tmp_path / "registry.duckdb", port, headless=True, public_key=useless)


def test_a_key_that_is_gone_by_the_time_of_the_click_is_a_message(
    files: Callable[[], AppTest], keys: Keys, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_VARIABLE, str(tmp_path / "gone.pub"))
    app = files()
    assert said(app) == ([], ["It is not shown that the key signed these files."])
    assert "gone.pub" in codes(app)
