"""Real text that every Python carries, so nothing is downloaded: a task, and prose that is not of that task.

The task are functions of the standard library and what their docstrings say: a row asks for the one-line summary of a
function, given its signature. Nothing is imported for it: the sources are parsed.
"""

from __future__ import annotations

import ast
import json
import random
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from rankloom_registry.files import write_atomically

SKIPPED_FOLDERS = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
MIN_SUMMARY, MAX_SUMMARY, MAX_SIGNATURE = 20, 120, 160  # characters
MIN_TEXT = 400  # characters


def write_docstring_rows(path: Path) -> int:
    """Write the dataset as JSON lines of `prompt` and `completion`, and return the number of rows.

    The rows depend only on the Python release: files are read in sorted order and repeated answers are left out.
    """
    rows = [
        {
            "prompt": f"Python function: {signature}\nSummary:",
            "completion": f" {summary}",
        }
        for signature, summary in documented_functions(Path(sysconfig.get_paths()["stdlib"]))
    ]
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
    return len(rows)


def reference_texts(count: int) -> list[str]:
    """Return pages of Python's language reference, which `help()` shows: prose of no task.

    Args:
        count: How many, 70 at most; drawn once and for all, of those that are long.
    """
    from pydoc_data.topics import topics

    return random.Random(0).sample([text for _, text in sorted(topics.items()) if len(text) >= MIN_TEXT], count)


def documented_functions(library: Path) -> Iterator[tuple[str, str]]:
    """Yield (signature, one-line summary) of each documented public function and method below a folder."""
    seen: set[str] = set()
    for file in sorted(library.rglob("*.py")):
        parts = file.relative_to(library).parts
        if SKIPPED_FOLDERS & set(parts):
            continue
        try:
            tree = ast.parse(file.read_bytes())
        except (SyntaxError, ValueError):  # a few files of the library are broken on purpose, to test tools with
            continue
        module = ".".join(parts).removesuffix(".py").removesuffix(".__init__")
        for scope, function in _functions(tree):
            pair = _describe(module, scope, function)
            if pair is not None and pair[1] not in seen:
                seen.add(pair[1])
                yield pair


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            yield from ((node.name, item) for item in node.body if isinstance(item, ast.FunctionDef))


def _describe(module: str, scope: str, function: ast.FunctionDef) -> tuple[str, str] | None:
    documentation = ast.get_docstring(function)
    if documentation is None or function.name.startswith("_"):
        return None
    summary = " ".join(documentation.split("\n\n")[0].split())
    name = ".".join(part for part in (module, scope, function.name) if part)
    signature = f"{name}({ast.unparse(function.args)})"
    fits = MIN_SUMMARY <= len(summary) <= MAX_SUMMARY and len(signature) <= MAX_SIGNATURE
    return (signature, summary) if fits and summary.endswith(".") and summary.isascii() else None
