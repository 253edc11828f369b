"""`rankloom adapters compare`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankloom.cli.output import (
    DEFAULT_REGISTRY,
    JsonOption,
    RegistryOption,
    errors,
    open_registry,
    output,
    progress_bars,
    show_json,
    show_table,
)
from rankloom_registry import Adapter, Registry, StepMetrics

if TYPE_CHECKING:
    from rankloom_registry import AdapterWeights, Similarity

NOT_COMPARED = ("params", "adapter_id", "artifact_path")


def register(adapters: typer.Typer) -> None:
    """Add this command."""
    adapters.command("compare")(compare_adapters)


def compare_adapters(
    refs: Annotated[list[str], typer.Argument(metavar="ADAPTER ADAPTER…", help="Two or more adapters.")],
    every: Annotated[bool, typer.Option("--all", help="Equal values, and each module, too.")] = False,
    weights: Annotated[bool, typer.Option(help="Read the adapters' weights, too.")] = True,
    base: Annotated[
        str | None, typer.Option("--base", help="The base; updates are then measured against its weights.")
    ] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Compare adapters side by side: configuration, metrics, learning curves, and what their weights say.

    The effective rank says how many directions an update uses; a cosine near 0 means that two updates have nothing in
    common, an overlap near 1 that they write to (columns) or read from (rows) the same directions.
    """
    if len(refs) < 2:
        raise typer.BadParameter("give two adapters or more", param_hint="ADAPTER")
    opened = open_registry(registry)
    found = [opened.adapter(ref) for ref in refs]
    rows = {
        name: [getattr(adapter, name) for adapter in found]
        for name in found[0].__dataclass_fields__
        if name not in NOT_COMPARED
    }
    different = {name: values for name, values in rows.items() if any(value != values[0] for value in values)}
    curves = [opened.step_metrics(adapter.trial_id) if adapter.trial_id else [] for adapter in found]
    read, alike = _read(opened, found, base) if weights else ({}, {})
    if as_json:
        show_json(
            {
                "adapters": found,
                "differences": different,
                "curves": {adapter.adapter_id: curve for adapter, curve in zip(found, curves, strict=True)},
                "weights": read,
                "similarity": [{"first": one, "second": other, **asdict(it)} for (one, other), it in alike.items()],
            }
        )
        return
    ids = [adapter.adapter_id for adapter in found]
    shown = rows if every else different
    show_table(("", *ids), [(name, *values) for name, values in shown.items()])
    _show_curves(ids, curves)
    _show_weights(ids, read, every=every)
    _show_similarity(alike, every=every)
    if len({adapter.base_content_root for adapter in found}) > 1:
        output().print("these adapters belong to different bases: their losses cannot be compared", style="yellow")


def _read(
    registry: Registry, adapters: Sequence[Adapter], base: str | None
) -> tuple[dict[str, AdapterWeights], dict[tuple[str, str], Similarity]]:
    """Read what can be read: an adapter whose files were not kept is left out, and named on stderr."""
    from rankloom_registry import compare_weights, read_weights

    base_path = _base_path(registry, adapters, base) if base is not None else None
    for adapter in adapters:
        if adapter.status != "available":
            errors().print(f"{adapter.adapter_id} is {adapter.status}: its weights were not kept", highlight=False)
    kept = {adapter.adapter_id: adapter for adapter in adapters if adapter.status == "available"}
    folders = {id_: registry.checkout(adapter) for id_, adapter in kept.items()}
    read: dict[str, AdapterWeights] = {}
    with progress_bars() as advance:
        for id_, folder in folders.items():
            read[id_] = read_weights(folder, base=base_path, progress=partial(advance, f"reading {id_}"))
        alike: dict[tuple[str, str], Similarity] = {}
        for one, other in combinations(folders, 2):
            told = partial(advance, f"comparing {one} with {other}")
            alike[one, other] = compare_weights(folders[one], folders[other], progress=told)
    return read, alike


def _base_path(registry: Registry, adapters: Sequence[Adapter], base: str) -> Path:
    """Find the base, and say so if it cannot be the adapters'; samples will do, where only figures are at stake."""
    from rankloom.belongs import find_base
    from rankloom_registry.bases.fingerprint import sample_base

    path = find_base(base).path
    sampled = sample_base(path)
    for adapter in adapters:
        if registry.base(adapter.base_content_root).sampled not in (None, sampled):
            errors().print(
                f"{path} is not the base of {adapter.adapter_id}: its relative norms say nothing; "
                f"see `rankloom base check {adapter.adapter_id} PATH`",
                style="yellow",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
    return path


def _show_curves(ids: Sequence[str], curves: Sequence[Sequence[StepMetrics]]) -> None:
    measured = [{at.step: at.eval_loss for at in curve if at.eval_loss is not None} for curve in curves]
    steps = sorted(set().union(*measured))
    if steps:
        rows = [(step, *(curve.get(step) for curve in measured)) for step in steps]
        show_table(("step", *ids), rows, title="\neval_loss by step")


def _show_weights(ids: Sequence[str], read: Mapping[str, AdapterWeights], *, every: bool) -> None:
    if not read:
        return
    show_table(
        ("adapter", "update_norm", "relative_norm", "effective_rank", "dead_modules", "modules"),
        [
            (id_, one.update_norm, one.relative_norm, one.effective_rank, one.dead_modules, len(one.modules))
            for id_, one in read.items()
        ],
        title="\nweights",
    )
    # One line a kind of module, such as q_proj, unless every module is asked for.
    groups: dict[str, dict[str, list[Any]]] = {}
    for id_, one in read.items():
        for module in one.modules:
            kind = module.module if every else module.module.rpartition(".")[2]
            groups.setdefault(kind, {}).setdefault(id_, []).append(module)
    shown = [id_ for id_ in ids if id_ in read]
    against_base = all(one.relative_norm is not None for one in read.values())
    norm = "relative_norm" if against_base else "frobenius_norm"
    rows = [
        (kind, *(_mean(members.get(id_, ()), name) for name in ("effective_rank", norm) for id_ in shown))
        for kind, members in groups.items()
    ]
    title = "\neffective rank of each update, and its norm" + (" against the base's weight" if against_base else "")
    columns = ("module", *(f"{id_} {what}" for what in ("rank", "norm") for id_ in shown))
    show_table(columns, rows, title=title + ("" if every else "; means over the layers"))
    for id_, one in read.items():
        if one.other_tensors:
            note = f"{id_} holds {len(one.other_tensors)} other tensors, of which this says nothing"
            output().print(f"{note}: {one.other_tensors[0]}, …", markup=False, highlight=False, soft_wrap=True)


def _mean(modules: Sequence[Any], name: str) -> float | None:
    values = [value for module in modules if (value := getattr(module, name)) is not None]
    return sum(values) / len(values) if values else None


def _show_similarity(alike: Mapping[tuple[str, str], Similarity], *, every: bool) -> None:
    if not alike:
        return
    columns = ("first", "second", "cosine", "column_overlap", "row_overlap", "shared", "only_first", "only_second")
    rows = [
        (*pair, it.cosine, it.column_overlap, it.row_overlap, len(it.modules), len(it.only_first), len(it.only_second))
        for pair, it in alike.items()
    ]
    show_table(columns, rows, title="\nsimilarity of the updates")
    if every:
        modules = [
            (*pair, one.module, one.cosine, one.column_overlap, one.row_overlap)
            for pair, it in alike.items()
            for one in it.modules
        ]
        show_table(("first", "second", "module", "cosine", "column_overlap", "row_overlap"), modules)
