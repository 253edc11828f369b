from __future__ import annotations

import numpy as np

from rankloom_registry.artifacts.parts import Parts, Piece

A, B, C = "a" * 64, "b" * 64, "c" * 64


def test_parts_say_where_the_rest_lies() -> None:
    parts = Parts(100, (Piece(10, 20, A, 0), Piece(30, 5, B, 0), Piece(90, 10, C, 7)))
    assert [gap[:2] for gap in parts.gaps()] == [(0, 10), (10, 0), (10, 55), (65, 0)]
    assert Parts.from_json(parts.to_json()) == parts
    file = np.arange(100)
    rest = np.concatenate([file[:10], file[35:90]])
    for start, size in ((0, 10), (3, 4), (35, 55), (40, 1)):
        offset = parts.within_rest(start, size)
        assert offset is not None and rest[offset : offset + size].tolist() == file[start : start + size].tolist()
    for start, size in ((5, 10), (10, 20), (12, 2), (30, 6), (80, 11), (95, 1)):
        assert parts.within_rest(start, size) is None
