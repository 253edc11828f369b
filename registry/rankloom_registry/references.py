"""Decides what a reference that a user typed means."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from rankloom_registry.errors import RegistryError

_Found = TypeVar("_Found")


def choose(
    ref: str,
    found: Sequence[_Found],
    *,
    what: str,
    identity: Callable[[_Found], tuple[str, str]],
    near: Callable[[], Iterable[str]],
    error: type[RegistryError],
) -> _Found:
    """Choose the one that a reference means: the one with this id, else the only one with this name, else the only one.

    Args:
        ref: The reference.
        found: What it may mean.
        what: What kind of thing it is, for the message.
        identity: The id and the name of one.
        near: Ids and names that may be meant, asked for only to suggest the nearest.
        error: What to raise.

    Returns:
        The one.

    Raises:
        RegistryError: As `error`, if the reference means none, or several.
    """
    identities = [identity(one) for one in found]
    for meant in (
        [one for one, (id_, _) in zip(found, identities, strict=True) if id_ == ref],
        [one for one, (_, name) in zip(found, identities, strict=True) if name == ref],
        found,
    ):
        if len(meant) == 1:
            return meant[0]
    if found:
        ids = ", ".join(id_ for id_, _ in identities[:5])
        raise error(f"{ref!r} means {len(found)} {what}s ({ids}{', …' * (len(found) > 5)}); give the id of one")
    nearest = difflib.get_close_matches(ref, list(dict.fromkeys(near())), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(nearest)}?" if nearest else f"list the {what}s to see what there is"
    raise error(f"no {what} answers to {ref!r}; {hint}")
