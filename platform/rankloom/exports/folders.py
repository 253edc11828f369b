"""A folder that is built under another name, and has its own only when it is whole and on the disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rankloom.errors import PromotionError
from rankloom_registry.files import sync_folder


@contextmanager
def whole_folder(output: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `output` at the end, or is gone if anything went wrong.

    Args:
        output: Folder to make; it may exist only if it is empty.

    Yields:
        The folder to write into.

    Raises:
        PromotionError: The output exists and is not an empty folder.
    """
    output = output.absolute()
    if output.is_symlink() or (output.exists() and not (output.is_dir() and not any(output.iterdir()))):
        raise PromotionError(
            f"the output must be a new or empty folder, got {output}; name another, or remove it first"
        )
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # In a container, one that was killed had this process id too.
    partial.mkdir(parents=True)
    try:
        yield partial
        _sync(partial)
        partial.rename(output)
        sync_folder(output.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sync(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            _sync(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
    sync_folder(folder)
