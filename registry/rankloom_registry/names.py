"""What a name and a content address may look like."""

from __future__ import annotations

import re

from rankloom_registry.errors import InvalidNameError

_NAME = re.compile(r"[A-Za-z0-9._-]{1,128}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def validate_name(name: str) -> str:
    """Return `name` if it is safe in a path, a command line and `name@alias`.

    Args:
        name: A name of a search, an adapter, an alias, or an id of one.

    Returns:
        The same name.

    Raises:
        InvalidNameError: If it holds anything but 1 to 128 of letters, digits, `.`, `_`, `-`, or if it holds `..`.
    """
    if not _NAME.fullmatch(name) or ".." in name or name == ".":
        raise InvalidNameError(
            f"a name is 1 to 128 letters, digits, '.', '_' or '-', without '..'; got {name!r}; choose another"
        )
    return name


def is_sha256(text: str) -> bool:
    """Whether `text` is a SHA-256 in lower-case hexadecimal."""
    return _SHA256.fullmatch(text) is not None
