"""Errors a user can act on; each is also a standard-library error and survives pickling, so Ray can carry it."""

from __future__ import annotations


class RankloomError(Exception):
    """Base of every error that `rankloom` raises on purpose: one message with rule, value and next step."""


class ConfigError(RankloomError, ValueError):
    """A search file, flag or argument breaks a rule."""


class DataError(RankloomError, ValueError):
    """A dataset is missing, empty or has the wrong columns."""


class ModelError(RankloomError, ValueError):
    """A model folder, file or hub id cannot serve as a base."""


class TrainingError(RankloomError, RuntimeError):
    """A trial or the lane that runs it broke a rule of training."""


class SearchError(RankloomError, RuntimeError):
    """A search as a whole could not start, go on or be resumed."""


class MergeError(RankloomError, ValueError):
    """An adapter cannot be merged into this base."""


class PromotionError(RankloomError, RuntimeError):
    """A promotion was refused by one of its checks."""


class OutputError(MergeError, PromotionError):
    """A folder cannot be written, by a merge or a promotion: it is taken, or another process writes it."""
