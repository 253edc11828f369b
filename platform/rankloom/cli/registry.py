"""`rankloom registry`: upkeep of the registry's files, and queries."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from rankloom.cli.output import (
    DEFAULT_REGISTRY,
    JsonOption,
    RegistryOption,
    errors,
    open_registry,
    output,
    show_json,
    show_pairs,
    show_table,
)
from rankloom_registry import Registry

registry = typer.Typer(no_args_is_help=True, help="Upkeep of the registry, and queries.")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(registry, name="registry")


@registry.command("rebuild")
def rebuild(
    runs: Annotated[
        list[Path] | None, typer.Option("--runs", help="A folder of run folders that lies elsewhere.")
    ] = None,
    path: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Make the registry again from its journal and the logs of searches; the file it was is set aside."""
    report = Registry.rebuild(path, runs=[folder.expanduser() for folder in runs or []])
    if as_json:
        show_json(report)
        return
    show_pairs(
        [
            ("registry", report.path),
            ("events", report.events),
            ("only in lanes' logs", report.from_logs),
            ("torn lines", report.torn),
            ("left out", len(report.left_out)),
            ("set aside as", report.set_aside),
        ]
    )
    for reason in report.left_out:
        errors().print(reason, style="yellow", markup=False, highlight=False, soft_wrap=True)


@registry.command("snapshot")
def snapshot(path: RegistryOption = DEFAULT_REGISTRY, as_json: JsonOption = False) -> None:
    """Copy the whole registry into its snapshots folder, also while a search runs, and print where the copy lies."""
    file = open_registry(path).snapshot()
    if as_json:
        show_json({"file": file, "bytes": file.stat().st_size})
        return
    typer.echo(file)


@registry.command("migrate")
def migrate(path: RegistryOption = DEFAULT_REGISTRY, as_json: JsonOption = False) -> None:
    """Bring the registry to the schema of this version."""
    from rankloom_registry.store.opening import migrate_file

    done = migrate_file(path.expanduser().resolve(), wait_s=60.0)
    if as_json:
        show_json({"migrations": done})
        return
    output().print(f"ran {', '.join(done)}" if done else "nothing to do: the schema is the newest", highlight=False)


@registry.command("gc")
def collect_garbage(
    grace: Annotated[str, typer.Option(help="Leave alone what is younger, such as 24h, 30m or 7d.")] = "24h",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, remove nothing.")] = False,
    path: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Remove the files of adapters that nothing refers to any more."""
    from rankloom_registry.gc import gc

    report = gc(open_registry(path), grace=_duration(grace), dry_run=dry_run)
    if as_json:
        show_json(report)
        return
    for name in (*report.removed, *report.leftovers):
        typer.echo(name)
    verb = "would free" if dry_run else "freed"
    output().print(
        f"{verb} {report.bytes / 1e6:.1f} MB: {len(report.removed)} adapters, {len(report.leftovers)} leftovers; "
        f"kept {report.kept} in use and {report.young} too young",
        highlight=False,
    )


@registry.command("sql")
def sql(
    query: Annotated[
        str, typer.Argument(metavar="QUERY", help="Such as 'select r, min(eval_loss) from adapters group by r'.")
    ],
    limit: Annotated[int, typer.Option(min=1, help="At most this many rows.")] = 1000,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0.1, help="Seconds that it may run.")] = 30.0,
    path: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Run a query over the registry's views; it can read them and nothing else."""
    rows = open_registry(path).sql(query, limit=limit, timeout_s=timeout_s)
    if as_json:
        show_json(rows)
    elif rows:
        show_table(list(rows[0]), [list(row.values()) for row in rows])
    else:
        errors().print("no rows", style="yellow")


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if match is None:
        raise typer.BadParameter(f"a time is a number with s, m, h or d, got {text!r}", param_hint="--grace")
    return timedelta(**{_UNITS[match[2]]: float(match[1])})
