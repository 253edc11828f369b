"""`rankloom quickstart`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from rankloom.cli.output import errors, open_registry, output, show_pairs, show_table
from rankloom.cli.searches import VerboseOption, run_search, show_next


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(quickstart)


def quickstart(
    folder: Annotated[Path, typer.Option(help="Folder for the dataset and the registry.")] = Path("quickstart"),
    num_samples: Annotated[int, typer.Option(min=1, help="Trials.")] = 8,
    verbose: VerboseOption = False,
) -> None:
    """Search adapters of a real small model on real text, offline, on this machine."""
    from rankloom.evaluation.base import BASE
    from rankloom.evaluation.evaluate import evaluate
    from rankloom.quickstart import quickstart_search

    started = time.monotonic()
    say = errors().print
    say("SmolLM2-135M-Instruct learns to summarise Python functions, from the standard library's own docstrings.")
    made = quickstart_search(folder, num_samples=num_samples, name=_free_name(folder))
    result = run_search(made, verbose=verbose, as_json=False, hint=False)
    assert result.best is not None and result.best.adapter_id is not None  # else _run has said so
    say("measuring the base beside the best adapter on the held-out rows")
    adapter_id = result.best.adapter_id
    report = evaluate(open_registry(result.registry), [adapter_id], samples=3)
    show_table(
        ("held-out loss, nats a token", ""),
        [
            ("base, 4-bit", report.metrics(BASE)["eval_loss"]),
            ("best adapter", report.metrics(adapter_id)["eval_loss"]),
        ],
    )
    for row in [row for row in report.rows if row.results[BASE].text is not None]:
        said = {"base": row.results[BASE].text, "adapter": row.results[adapter_id].text}
        samples = {"prompt": row.prompt, "expected": row.expected, **said}
        output().print()
        show_pairs([(name, " ".join((text or "").split())) for name, text in samples.items()])
    show_next(result)
    say(f"done in {time.monotonic() - started:.0f} s", style="dim")


def _free_name(folder: Path) -> str:
    """Return 'quickstart', or 'quickstart-2' and so on where it has been run before."""
    runs = folder / "registry.runs"
    names = ["quickstart", *(f"quickstart-{number}" for number in range(2, 10_000))]
    return next(name for name in names if not (runs / name).exists())
