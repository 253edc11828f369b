"""The half-sentence that names what the user probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """Names the known word nearest to `word`, as the end of an error message, or returns an empty string.

    Args:
        word: What the user wrote.
        known: The words that would have been right.

    Returns:
        `" (did you mean 'x'?)"`, or `""` where nothing comes near.
    """
    near = difflib.get_close_matches(str(word), list(known), n=1, cutoff=0.4)
    return f" (did you mean {near[0]!r}?)" if near else ""
