"""`rankloom evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankloom.cli.output import (
    DEFAULT_REGISTRY,
    JsonOption,
    RegistryOption,
    cell,
    open_registry,
    output,
    progress_bars,
    show_json,
    show_table,
)
from rankloom.cli.signing import IdentityOption, IssuerOption, PublicKeyOption, verifier_of

if TYPE_CHECKING:
    from rankloom.evaluation.report import Report

BaseOption = Annotated[str | None, typer.Option("--base", help="Where the base is now, if it moved.")]
DatasetOption = Annotated[
    str | None, typer.Option(help="Rows to measure on; by default the held-out split of the adapter's search.")
]
_BEFORE_ROUNDING = 1e-4


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(evaluate)


def evaluate(
    refs: Annotated[
        list[str],
        typer.Argument(metavar="ADAPTER...", help="One adapter or more of one base: ids, names or name@alias."),
    ],
    dataset: DatasetOption = None,
    base_too: Annotated[
        bool, typer.Option("--base-too", help="Measure the base alone as well, and compare with it.")
    ] = False,
    metrics: Annotated[
        str, typer.Option(help="Any of loss, exact_match and rouge_l, separated by commas; 'none' for tasks alone.")
    ] = "loss",
    tasks: Annotated[str, typer.Option(help="lm-eval's tasks, separated by commas; needs rankloom\\[eval].")] = "",
    tasks_folder: Annotated[str | None, typer.Option(help="A folder with more of these, as YAML files.")] = None,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that are generated for a row at most.")] = 128,
    limit: Annotated[int | None, typer.Option(min=1, help="Measure the first rows only.")] = None,
    base: BaseOption = None,
    public_key: PublicKeyOption = None,
    identity: IdentityOption = None,
    oidc_issuer: IssuerOption = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Measure adapters on held-out data, on their own quantized base, and say what got better and what worse."""
    from rankloom.evaluation.evaluate import evaluate as run
    from rankloom.hush import hush

    hush()

    opened = open_registry(registry, verifier_of(public_key, identity, oidc_issuer))
    with progress_bars() as advance:
        report = run(
            opened,
            refs,
            dataset=dataset,
            metrics=() if metrics == "none" else _names(metrics),
            tasks=_names(tasks),
            tasks_folder=tasks_folder,
            base=base,
            base_too=base_too,
            max_new_tokens=max_new_tokens,
            limit=limit,
            on_batch=advance,
        )
    if as_json:
        show_json(_document(report))
    else:
        _show(report)


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name for part in text.split(",") if (name := part.strip())))


def _document(report: Report) -> dict[str, Any]:
    """The report; of a single adapter, its figures stand at the top as well."""
    from rankloom.evaluation.base import BASE

    document = report.to_dict()
    adapters = [subject for subject in report.subjects if subject.subject != BASE]
    if len(adapters) > 1:
        return document
    loss, base_loss = adapters[0].metrics.get("eval_loss"), report.metrics(BASE).get("eval_loss")
    return {
        "adapter_id": adapters[0].subject,
        "eval_loss": loss,
        "base_loss": base_loss,
        "gain_over_base": None if loss is None or base_loss is None else base_loss - loss,
        "tokens": adapters[0].metrics.get("tokens"),
        **document,
    }


def _rows(dataset: Mapping[str, Any]) -> str | None:
    """What was measured on, and what is missing of it."""
    if "source" not in dataset:
        return None
    cut, dropped, longest = dataset.get("cut_rows"), dataset.get("dropped_rows"), dataset.get("max_length")
    notes = [f"{cut} cut to {longest} tokens"] * bool(cut) + [f"{dropped} left out as too long"] * bool(dropped)
    return ", ".join([f"{dataset['rows']} rows of {dataset['source']}", *notes])


def _show(report: Report) -> None:
    named = list(dict.fromkeys(name for subject in report.subjects for name in subject.metrics))
    show_table(
        ["", *(subject.subject for subject in report.subjects)],
        [[name, *(subject.metrics.get(name) for subject in report.subjects)] for name in named],
        title=_rows(report.dataset),
    )
    if not report.comparisons:
        return
    output().print()
    show_table(
        ["metric", "of", "beside", "difference", "95% interval", "p", "verdict", "worse on"],
        [
            [
                one.metric,
                one.after,
                one.before,
                f"{one.difference:+.4f}",
                None if one.low is None else f"{one.low:+.4f} to {one.high:+.4f}",
                None if one.p is None else "< 0.0001" if one.p < _BEFORE_ROUNDING else cell(one.p),
                one.verdict,
                f"{len(one.regressions)} of {one.rows} rows ({one.regressed:.0%}), by more than {one.margin:g}",
            ]
            for one in report.comparisons
        ],
    )
