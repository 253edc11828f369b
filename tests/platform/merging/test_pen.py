from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from rankloom.merging.pen import Pen


def write_file(pen: Pen, name: str, blocks: list[bytes]) -> None:
    pen.open(name)
    for block in blocks:
        view = pen.borrow(len(block))
        view[:] = block
        pen.write(view)
    pen.close()


def test_blocks_come_out_in_order_and_are_hashed(tmp_path: Path) -> None:
    files = {name: [bytes([index % 256]) * (index * 7 % 300) for index in range(500)] for name in ("a", "b", "c")}
    finished: list[tuple[str, str]] = []
    sizes: list[int] = []
    with Pen(tmp_path, lambda *file: finished.append(file), sizes.append) as pen:
        for name, blocks in files.items():
            write_file(pen, name, blocks)
        pen.join()
    for name, blocks in files.items():
        assert (tmp_path / name).read_bytes() == b"".join(blocks)
    assert finished == [(name, hashlib.sha256(b"".join(blocks)).hexdigest()) for name, blocks in files.items()]
    assert sum(sizes) == sum(path.stat().st_size for path in tmp_path.iterdir())


def test_what_cannot_be_written_is_told_and_closed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), Pen(tmp_path, lambda *file: None, lambda size: None) as pen:
        pen.open("a")
        full = open("/dev/full", "wb", buffering=0)  # noqa: PTH123, SIM115
        pen._file._file = full  # type: ignore[union-attr]
        pen.write(pen.borrow(1000))
        pen.close()
        write_file(pen, "b", [bytes(1000)] * 100)
        pen.join()
    assert full.closed
