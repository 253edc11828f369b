"""What all events have in common: an identity, a time, a user, and a line of JSON."""

from __future__ import annotations

import getpass
import json
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from operator import attrgetter
from typing import Any, ClassVar

from rankloom_registry.errors import EventError, RegistryError
from rankloom_registry.jsontext import as_number, encode
from rankloom_registry.records import BaseFingerprint

EVENTS: dict[str, type[Event]] = {}  # by kind

_acting_for: ContextVar[str] = ContextVar("acting_for", default="")


@contextmanager
def acting_for(who: str) -> Iterator[None]:
    """Record events on behalf of somebody, such as a visitor of a server, rather than of this process's user.

    Args:
        who: Their name or address; empty for this process's user after all.
    """
    token = _acting_for.set(who)
    try:
        yield
    finally:
        _acting_for.reset(token)


def acting_user() -> str:
    """Return on whose behalf events are recorded here and now."""
    if who := _acting_for.get():
        return who
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user id that has no name
        return str(os.getuid())


@dataclass(frozen=True, kw_only=True)
class Event:
    """One fact, recorded once.

    Args:
        event_id: Its identity: a second event with the same one is ignored, so a retry is harmless. By default it is
            derived from what the event is about.
        at: When it happened, aware of its time zone.
        who: The user on whose behalf it happened.
        why: The reason, in the user's words.
    """

    kind: ClassVar[str]
    about: ClassVar[str]  # the field that is the subject
    same: ClassVar[tuple[str, ...]] = ()  # the fields that make it the same event when it is sent again
    event_id: str = ""
    at: datetime = field(default_factory=lambda: datetime.now(UTC))
    who: str = field(default_factory=acting_user)
    why: str = ""

    def __init_subclass__(cls) -> None:
        if "kind" in vars(cls):
            EVENTS[cls.kind] = cls

    def __post_init__(self) -> None:
        if self.at.tzinfo is None:
            raise EventError(f"an event's time is aware of its time zone; got {self.at}; use datetime.now(UTC)")
        self._check()
        if not self.event_id:
            key = self._key() or [uuid.uuid4().hex]
            object.__setattr__(self, "event_id", ":".join((self.kind, *key)))

    def _check(self) -> None:
        """Raise if a field breaks a rule of this kind of event."""

    def _key(self) -> Sequence[str]:
        """What makes it the same event when it is sent again; nothing if it never is."""
        return [str(attrgetter(name)(self)) for name in self.same]

    @property
    def subject(self) -> str:
        """What the event is about: the id under which `Registry.events` finds it."""
        return str(attrgetter(self.about)(self))

    @property
    def reasoning(self) -> str:
        """Why it happened: `why`, or what the events of its kind state as their `reason`."""
        return self.why or str(getattr(self, "reason", ""))

    @property
    def payload(self) -> dict[str, Any]:
        """The event's own fields, without its id, time, user and `why`."""
        own = asdict(self)
        return {name: value for name, value in own.items() if name not in ("event_id", "at", "who", "why")}

    def to_json(self) -> str:
        """One line of JSON from which `Event.from_json` makes the same event."""
        head = {"kind": self.kind, "event_id": self.event_id, "at": self.at.isoformat(), "who": self.who}
        return encode(head | {"why": self.why} | self.payload)

    @staticmethod
    def from_json(text: str) -> Event:
        """Make the event that `to_json` wrote.

        Args:
            text: One JSON object.

        Returns:
            An event of the kind that the object names.

        Raises:
            EventError: If the text is not such an object.
        """
        try:
            data = json.loads(text)
            event = EVENTS[data.pop("kind")]
            data["at"] = datetime.fromisoformat(data["at"])
            if "base" in data:
                data["base"] = BaseFingerprint(**data["base"])
            if "metrics" in data:
                data["metrics"] = {name: as_number(value) for name, value in data["metrics"].items()}
            return event(**data)
        except RegistryError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise EventError(
                f"not an event: {text[:80]!r} ({error}); skip the line if it is the torn last one"
            ) from error
