"""Telling a search that runs what to do, from any other process of its machine; and telling whether it runs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rankloom.errors import SearchError
from rankloom.mailbox import Mailbox, Request
from rankloom.runs import Run, open_run
from rankloom_registry import Registry, SearchRecord, acting_user

WAIT_S = 30.0  # the driver looks every second, unless it records the end of a large trial
_POLL_S = 0.05


def stop_trial(registry: Registry, search: str, number: int, *, why: str = "") -> None:
    """Stop a trial of a search that runs; its adapter is kept as that of any trial that was stopped early.

    Args:
        registry: The search's registry.
        search: Its id or name.
        number: The trial's number.
        why: The reason, which is recorded.

    Raises:
        SearchError: The search does not run, or the trial does not.
        SearchNotFoundError: There is no such search.
    """
    _ask(registry, search, Request(kind="stop_trial", who=acting_user(), why=why, trial=number))


def stop_search(registry: Registry, search: str, *, why: str = "") -> None:
    """Interrupt a search that runs, as Ctrl-C does: it can be resumed.

    Args:
        registry: The search's registry.
        search: Its id or name.
        why: The reason, which is recorded.

    Raises:
        SearchError: The search does not run.
        SearchNotFoundError: There is no such search.
    """
    _ask(registry, search, Request(kind="stop_search", who=acting_user(), why=why))


def add_trials(registry: Registry, search: str, count: int, *, why: str = "") -> int:
    """Let a search that runs propose more trials.

    Args:
        registry: The search's registry.
        search: Its id or name.
        count: How many more.
        why: The reason, which is recorded.

    Returns:
        How many trials it has from now on.

    Raises:
        SearchError: The search does not run, or can propose no more.
        SearchNotFoundError: There is no such search.
    """
    answer = _ask(registry, search, Request(kind="add_trials", who=acting_user(), why=why, count=count))
    return int(answer["num_samples"])


def status_now(registry: Registry, search: SearchRecord) -> str:
    """Return a search's status; that of one whose process died without a word is 'interrupted'.

    Args:
        registry: The search's registry.
        search: As the registry returned it: 'running' from its start until its driver records its end.

    Returns:
        Its recorded status, but 'interrupted' for a search that is recorded as running and has no driver. Where its run
        folder cannot be seen from here, the recorded status is all that is known.
    """
    if search.status != "running":
        return search.status
    try:
        return "running" if run_of(registry, search).is_running() else "interrupted"
    except SearchError:
        return search.status


def run_of(registry: Registry, search: SearchRecord) -> Run:
    """Return the run of a search.

    Args:
        registry: The search's registry.
        search: As the registry returned it.

    Raises:
        SearchError: Its run folder is not on this machine any more.
    """
    beside = registry.path.with_suffix(".runs")
    for storage in (beside, Path(search.config.get("storage_path") or beside)):
        try:
            run = open_run(storage / search.name, storage)
        except SearchError:
            continue
        if run.search_id == search.search_id:
            return run
    raise SearchError(
        f"the run folder of the search {search.name!r} is not on this machine; ask where the search was started"
    )


def _ask(registry: Registry, search: str, request: Request) -> dict[str, Any]:
    found = registry.search(search)
    try:
        run = run_of(registry, found)
    except SearchError:
        if found.status == "running":
            raise
        raise SearchError(f"the search {found.name!r} does not run now: it is {found.status}") from None
    return ask(run, request)


def ask(run: Run, request: Request, *, wait_s: float = WAIT_S) -> dict[str, Any]:
    """Ask something of a run's driver, and wait until it is done.

    Args:
        run: The run.
        request: What is asked.
        wait_s: The longest wait for the driver to take it, in seconds; one that was taken has as long again.

    Returns:
        What the driver answered.

    Raises:
        SearchError: No driver is there, it refuses, or it takes too long.
    """
    if not run.is_running():
        raise SearchError(f"the search {run.name!r} does not run now; go on with it by --resume, or start another one")
    mailbox = Mailbox(run.requests)
    mailbox.post(request)
    began = time.monotonic()
    while True:
        # Before the answer is looked for: what ends or is thrown away between the two looks has been answered.
        over = not (run.is_running() and mailbox.holds(request))
        answer = mailbox.answer_to(request)
        if answer is not None:
            if answer["refusal"]:
                raise SearchError(answer["refusal"])
            return answer
        if over:
            mailbox.withdraw(request)
            raise SearchError(f"the search {run.name!r} ended before it could do that")
        waited = time.monotonic() - began
        if waited > wait_s and mailbox.withdraw(request):
            raise SearchError(f"the search {run.name!r} did not listen for {wait_s:g} s, and was not told; try again")
        if waited > 2 * wait_s:
            raise SearchError(f"the search {run.name!r} was told, and did not say within {waited:.0f} s what it did")
        time.sleep(_POLL_S)
