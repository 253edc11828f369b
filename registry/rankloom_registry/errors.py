"""Errors of the registry; each is also a standard-library one and survives pickling."""

from __future__ import annotations


class RegistryError(Exception):
    """Base of every error that the registry raises on purpose: one message with rule, value and next step."""


class RegistryNotFoundError(RegistryError, FileNotFoundError):
    """No registry file lies at the path."""


class RegistryFormatError(RegistryError, ValueError):
    """The file is not a registry, or one whose schema this version does not know."""


class RegistryBusyError(RegistryError, TimeoutError):
    """Another process or thread kept the registry for longer than the wait."""


class RegistryWriteError(RegistryError, OSError):
    """The registry or its artifacts cannot be written."""


class EventError(RegistryError, ValueError):
    """An event breaks a rule, or speaks of something that the registry has not recorded."""


class AdapterNotFoundError(RegistryError, LookupError):
    """No single adapter answers to the reference."""


class SearchNotFoundError(RegistryError, LookupError):
    """No single search answers to the reference."""


class BaseNotFoundError(RegistryError, LookupError):
    """No base model with this content root is recorded."""


class QueryError(RegistryError, ValueError):
    """A filter, an ordering or a query is not allowed or does not run."""


class ArtifactError(RegistryError, ValueError):
    """An adapter's files are missing, changed or not allowed."""


class FingerprintError(RegistryError, ValueError):
    """A folder or file cannot be fingerprinted as a base model."""


class InvalidNameError(RegistryError, ValueError):
    """A name breaks the rule for names."""


class MissingPackageError(RegistryError, ImportError):
    """What was asked for needs an optional package that is not installed."""


class SignatureError(RegistryError, ValueError):
    """A folder's signature is missing, is not by this signer, or is not of these files."""


class ArtifactUnreachableError(RegistryError, ConnectionError):
    """The place that holds the artifacts cannot be reached, or does not let this user in."""


class RegistryRecoveredWarning(UserWarning):
    """A registry was recovered after a program died with it open; the message says what was done."""
