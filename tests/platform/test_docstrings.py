from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from rankloom.docstrings import (
    MAX_SIGNATURE,
    MAX_SUMMARY,
    MIN_SUMMARY,
    MIN_TEXT,
    documented_functions,
    reference_texts,
    write_docstring_rows,
)

SOURCE = '''
"""A module."""

def documented(a, *, b=1):
    """Return the sum of two numbers.

    And more of it.
    """

def _private():
    """Return nothing that anyone should see."""

def bare():
    pass

def terse():
    """Too short."""

def unfinished():
    """A summary that does not end with a full stop"""

def again():
    """Return the sum of two numbers."""

class Thing:
    def method(self):
        """Do the work in
        two lines.
        """
'''


def test_only_good_summaries_of_public_functions(tmp_path: Path) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "__init__.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("def broken(:\n")
    for skipped in ("test", "site-packages"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "module.py").write_text(SOURCE.replace("sum", "product"))
    assert list(documented_functions(tmp_path)) == [
        ("package.documented(a, *, b=1)", "Return the sum of two numbers."),
        ("package.Thing.method(self)", "Do the work in two lines."),
    ]


def test_rows_of_this_python(tmp_path: Path) -> None:
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    count = write_docstring_rows(here)
    rows = [json.loads(line) for line in here.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == count > 1000
    assert {tuple(row) for row in rows} == {("prompt", "completion")}
    assert len({row["completion"] for row in rows}) == count
    for row in rows:
        signature = row["prompt"].removeprefix("Python function: ").removesuffix("\nSummary:")
        assert len(signature) <= MAX_SIGNATURE and MIN_SUMMARY <= len(row["completion"].strip()) <= MAX_SUMMARY

    code = f"import pathlib, rankloom.docstrings as d; d.write_docstring_rows(pathlib.Path({str(there)!r}))"
    environment = {"PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert here.read_bytes() == there.read_bytes()


def test_prose_that_holds_nothing_of_the_rows(tmp_path: Path) -> None:
    write_docstring_rows(tmp_path / "rows.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = reference_texts(24)
    assert len(set(texts)) == 24 and all(len(text) >= MIN_TEXT for text in texts)
    assert texts == reference_texts(24)
    for text in texts:
        plain = " ".join(text.split())
        assert not [row for row in rows if row["completion"].strip() in plain or row["prompt"] in plain]
