from __future__ import annotations

import os
from pathlib import Path

import pytest

from rankloom_registry.files import write_atomically


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    file = tmp_path / "state.json"
    write_atomically(file, b"first")
    write_atomically(file, b"second, longer")
    assert file.read_bytes() == b"second, longer"
    assert list(tmp_path.iterdir()) == [file]


def test_a_failed_rename_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    occupied = tmp_path / "occupied"
    (occupied / "inside").mkdir(parents=True)
    with pytest.raises(OSError):
        write_atomically(occupied, b"a file cannot replace a folder")
    assert list(tmp_path.iterdir()) == [occupied] and (occupied / "inside").is_dir()


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "state.json"
    write_atomically(file, b"first")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomically(file, b"second")
    assert file.read_bytes() == b"first" and list(tmp_path.iterdir()) == [file]
