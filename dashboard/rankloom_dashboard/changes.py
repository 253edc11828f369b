"""Everything that the dashboard can change: each change asks anew who wants it, and is recorded on their behalf."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from rankloom import control
from rankloom.errors import OutputError
from rankloom.merging import Recipe, Verify
from rankloom.outputs import MANIFEST, absolute, free_output
from rankloom.promotion import Format
from rankloom_dashboard import access, data
from rankloom_dashboard.access import Role
from rankloom_dashboard.errors import BusyError, ReasonMissingError
from rankloom_dashboard.jobs.job import Job, board
from rankloom_dashboard.jobs.playground import Playground
from rankloom_registry import (
    Adapter,
    AdapterAnnotated,
    AliasMove,
    PromotionRecord,
    Registry,
    acting_for,
)
from rankloom_registry import discard as discard_adapters
from rankloom_registry import move_alias as move
from rankloom_registry import remove_alias as remove
from rankloom_registry import undo_promotion as undo

_P = ParamSpec("_P")
_R = TypeVar("_R")
CHANGES: dict[str, Callable[..., object]] = {}  # by name; the tests try each without leave
_STARTING = threading.Lock()  # that nothing like it runs still holds when it is started


def change(role: Role) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Makes a function a change that needs a role; what it records is recorded on behalf of who asked for it."""

    def guard(function: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(function)
        def guarded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            with acting_for(access.require(role).who):
                return function(*args, **kwargs)

        CHANGES[function.__name__] = guarded
        return guarded

    return guard


@change("editor")
def annotate(
    ref: str, *, name: str | None = None, note: str | None = None, add: tuple[str, ...] = (), drop: tuple[str, ...] = ()
) -> None:
    """Gives an adapter another name or note, adds tags and drops tags; what is None stays."""
    registry = _registry()
    adapter = registry.adapter(ref)
    registry.record(
        AdapterAnnotated(adapter_id=adapter.adapter_id, name=name, note=note, tags_added=add, tags_removed=drop)
    )


@change("promoter")
def move_alias(ref: str, alias: str, *, why: str) -> AliasMove:
    """Lets an alias of an adapter's name mean that adapter."""
    return move(_registry(), ref, alias, why=why)


@change("promoter")
def remove_alias(ref: str, alias: str, *, why: str) -> list[AliasMove]:
    """Lets an alias mean nothing any more."""
    return remove(_registry(), ref, alias, why=why)


@change("editor")
def discard(refs: tuple[str, ...], *, reason: str) -> list[Adapter]:
    """Marks adapters as discarded; one that an alias means is refused."""
    return discard_adapters(_registry(), refs, reason=reason)


@change("promoter")
def undo_promotion(ref: str, *, why: str) -> tuple[PromotionRecord, AliasMove | None]:
    """Undoes an adapter's last promotion."""
    return undo(_registry(), ref, why=_reason(why))


@change("promoter")
def start_promotion(
    ref: str,
    output: str,
    *,
    why: str,
    format: Format = "safetensors",
    recipe: Recipe = "full-precision",
    gguf_type: str | None = None,
    alias: str | None = None,
    verify: Verify = "sampled",
    compare: bool = True,
    base: str | None = None,
    dataset: str | None = None,
    tolerance: float | None = None,
    force: bool = False,
) -> str:
    """Starts a promotion, as `rankloom.promotion.promote.promote` does it; returns the id of its job.

    Raises:
        ReasonMissingError: No reason is given.
        RankloomError: There can be no such output.
    """
    why, folder = _reason(why), _folder(output)
    if not (folder / MANIFEST).is_file():  # one that was made and not recorded is recorded by the same promotion
        free_output(folder)
    order = {
        "registry": str(data.registry_path()),
        "adapter": _registry().adapter(ref).adapter_id,
        "output": str(folder),
        "format": format,
        "recipe": recipe,
        "gguf_type": gguf_type,
        "alias": alias,
        "reason": why,
        "verify": verify,
        "compare": compare,
        "base": base,
        "dataset": dataset,
        "tolerance": tolerance,
        "force": force,
    }
    return board().start("promote", order, access.require("promoter").who).job_id


def _folder(output: str) -> Path:
    if not output.strip():
        raise OutputError("a promotion makes a folder, and none is named: name one")
    return absolute(Path(output))


def _reason(why: str) -> str:
    if not why.strip():
        raise ReasonMissingError("this is recorded with its reason: say why")
    return why.strip()


@change("editor")
def stop_trial(search: str, number: int, *, why: str) -> None:
    """Stops a trial of a search that runs; its adapter is kept."""
    control.stop_trial(_registry(), search, number, why=why)


@change("editor")
def stop_search(search: str, *, why: str) -> None:
    """Interrupts a search that runs; it can be resumed."""
    control.stop_search(_registry(), search, why=why)


@change("editor")
def add_trials(search: str, count: int) -> None:
    """Lets a search that runs propose so many more trials."""
    control.add_trials(_registry(), search, count)


@change("editor")
def start_evaluation(refs: tuple[str, ...], **wishes: Any) -> Job:
    """Evaluates adapters in a program of its own; `wishes` are arguments of `rankloom.evaluation.evaluate.evaluate`."""
    order = {"registry": str(data.registry_path()), "refs": list(refs), **wishes}
    with _STARTING:
        if any(job.state == "running" for job in board().all("evaluate")):
            raise BusyError("an evaluation runs here already; wait until it ends, or cancel it")
        return board().start("evaluate", order, access.require("editor").who)


@change("editor")
def cancel_job(job_id: str) -> None:
    """Stops a program that works for the dashboard, if the visitor has the role that this takes."""
    job = board().find(job_id)
    if job is not None:
        access.require(needed_to_cancel(job))
        job.cancel()


def needed_to_cancel(job: Job) -> Role:
    """Returns the role that it takes to stop a program: that of a promoter if somebody else started it."""
    visitor = access.visitor()
    return "editor" if visitor is not None and visitor.who == job.who else "promoter"


@change("editor")
def start_playground(refs: tuple[str, ...], *, base: str | None = None) -> Playground:
    """Loads adapters and their base to talk to; whoever does that again lets go of what they had."""
    who = access.require("editor").who
    order = {"registry": str(data.registry_path()), "refs": list(refs), "base": base}
    with _STARTING:
        for job in board().all("playground"):
            if job.state == "running":
                if job.who != who:
                    raise BusyError("somebody else uses the playground; it is free when they end it, or do not use it")
                job.cancel()
        return board().start("playground", order, who, make=Playground)


def _registry() -> Registry:
    return Registry.open(data.registry_path(), wait_s=data.WAIT_SECONDS)
