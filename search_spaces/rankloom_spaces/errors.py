"""The one error of this package; it is a `ValueError` and survives pickling, so Ray can carry it."""

from __future__ import annotations


class SpaceError(ValueError):
    """A search space, one of its parameters or a target-module choice breaks a rule."""
