"""The mailbox of a search: a folder where other processes leave requests, which its driver takes, does and answers."""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from rankloom.errors import SearchError
from rankloom_registry.files import write_atomically

Kind = Literal["stop_trial", "stop_search", "add_trials"]
_POLL_S = 0.01
_NEEDS: dict[str, tuple[str, int]] = {"stop_trial": ("trial", 0), "add_trials": ("count", 1)}  # and the least of it


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What somebody asks of a search that runs.

    Attributes:
        kind: 'stop_trial', 'stop_search' or 'add_trials'.
        who: On whose behalf.
        why: The reason, in their words.
        trial: The number of the trial to stop.
        count: How many trials to add.
        request_id: Its name in the mailbox.
    """

    kind: Kind
    who: str
    why: str = ""
    trial: int | None = None
    count: int | None = None
    request_id: str = field(default_factory=lambda: secrets.token_hex(8))

    def __post_init__(self) -> None:
        """Raise if it cannot be one.

        Raises:
            SearchError: Its kind is unknown, or a field has a value that its kind has no use for.
        """
        if self.kind not in get_args(Kind):
            raise SearchError(f"a request is one of {', '.join(get_args(Kind))}; got {self.kind!r}")
        if not all(isinstance(text, str) for text in (self.who, self.why, self.request_id)):
            raise SearchError(f"who asks, and why, is text; got {self.who!r} and {self.why!r}")
        if self.kind in _NEEDS:
            name, least = _NEEDS[self.kind]
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise SearchError(f"{self.kind} needs a {name} of {least} or more; got {value!r}")


def stopped_by(who: str, why: str) -> str:
    """Say who stopped something, and why."""
    return f"stopped by {who}" + (f": {why}" if why else "")


class Mailbox:
    """Requests lie in it as `<id>.json`, while they are being done as `<id>.taken`, and then their `<id>.answer`.

    Each step is one rename, so that a request is taken once or withdrawn, never both. It is there while the driver is;
    what one that was killed leaves is thrown away by the next: whoever asked has been told that the search ended.
    """

    def __init__(self, folder: Path) -> None:
        """Name its folder; nothing is made."""
        self._folder = folder

    # For the driver

    def open(self) -> None:
        """Make the folder, empty."""
        self.close()
        self._folder.mkdir(exist_ok=True)

    def close(self, *, wait_s: float = 0.0) -> None:
        """Throw the folder away, with what is in it, once the answers are read: at the latest after `wait_s`."""
        deadline = time.monotonic() + wait_s
        while any(self._folder.glob("*.answer")) and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def take(self) -> list[Request]:
        """Take what was asked, in the order in which it was; nobody else gets it from then on."""
        taken = []
        for file in sorted(self._folder.glob("*.json"), key=_posted):
            mine = file.with_suffix(".taken")
            try:
                file.rename(mine)
            except OSError:  # withdrawn, or not ours to take
                continue
            try:
                taken.append(Request(**{**json.loads(mine.read_bytes()), "request_id": file.stem}))
            except (SearchError, OSError, TypeError, ValueError) as error:  # nobody of ours wrote that
                self._answer(file.stem, {"refusal": f"this is no request: {error}"})
        return taken

    def answer(self, request: Request, *, refusal: str = "", **facts: Any) -> None:
        """Tell who asked that it was done, with JSON-ready facts about it, or why it is not."""
        self._answer(request.request_id, {"refusal": refusal, **facts})

    # For who asks

    def post(self, request: Request) -> None:
        """Leave a request.

        Raises:
            SearchError: There is no mailbox, or it cannot be written.
        """
        try:
            write_atomically(self._folder / f"{request.request_id}.json", json.dumps(asdict(request)).encode())
        except FileNotFoundError:
            raise SearchError(
                f"cannot leave a request in {self._folder}: its search begins or ends at this moment: try again"
            ) from None
        except OSError as error:
            raise SearchError(
                f"cannot leave a request in {self._folder}: {error.strerror}; ask as the user who runs the search"
            ) from error

    def withdraw(self, request: Request) -> bool:
        """Take a request back; returns whether it had not been taken."""
        try:
            (self._folder / f"{request.request_id}.json").unlink()
        except FileNotFoundError:
            return False
        return True

    def holds(self, request: Request) -> bool:
        """Whether a request waits, or is being done."""
        # In this order: one that is taken between the two looks is seen by the second.
        return any((self._folder / f"{request.request_id}.{suffix}").exists() for suffix in ("json", "taken"))

    def answer_to(self, request: Request) -> dict[str, Any] | None:
        """Return the answer to a request and throw it away; None while there is none."""
        file = self._folder / f"{request.request_id}.answer"
        try:
            answer: dict[str, Any] = json.loads(file.read_bytes())
        except FileNotFoundError:
            return None
        file.unlink(missing_ok=True)
        return answer

    def _answer(self, request_id: str, answer: dict[str, Any]) -> None:
        # Planned: an answer that cannot be written is waited for in vain, but must not end the search.
        with contextlib.suppress(OSError):
            write_atomically(self._folder / f"{request_id}.answer", json.dumps(answer).encode())
            (self._folder / f"{request_id}.taken").unlink(missing_ok=True)


def _posted(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except FileNotFoundError:  # withdrawn
        return 0
