"""`rankloom search`, `plan`, `searches` and `spaces`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankloom.cli import steering
from rankloom.cli.output import (
    DEFAULT_REGISTRY,
    JsonOption,
    RegistryOption,
    cell,
    errors,
    open_registry,
    output,
    show_json,
    show_pairs,
    show_table,
)
from rankloom.cli.steering import SearchArgument
from rankloom.errors import ConfigError, SearchError

if TYPE_CHECKING:
    from rankloom.result import SearchResult
    from rankloom.search import Search
    from rankloom_registry import Registry, SearchRecord

searches = typer.Typer(no_args_is_help=True, help="What ran.")
spaces = typer.Typer(no_args_is_help=True, help="What can be searched.")
ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG.yaml", help="The search file.", show_default=False)]
VerboseOption = Annotated[bool, typer.Option("--verbose", help="Let Ray and the libraries talk.")]
# Not RegistryOption: a search file may name the registry, and only a flag or the environment outranks it.
RegistryOverride = Annotated[
    Path | None, typer.Option("--registry", envvar="RANKLOOM_REGISTRY", help="The registry file.", show_default=False)
]


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(search)
    app.command()(plan)
    app.add_typer(searches, name="searches")
    steering.register(searches)
    app.add_typer(spaces, name="spaces")


def search(
    config: ConfigArgument,
    num_samples: Annotated[int | None, typer.Option(min=1, help="Trials.")] = None,
    registry: RegistryOverride = None,
    name: Annotated[str | None, typer.Option(help="Name of the search and of its run folder.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted search.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, train nothing.")] = False,
    verbose: VerboseOption = False,
    as_json: JsonOption = False,
) -> None:
    """Search for the best adapter, as CONFIG.yaml says."""
    from rankloom.search import Search

    made = Search.from_yaml(config, num_samples=num_samples, registry=registry, name=name)
    if resume:
        if made.config.name is None:
            raise ConfigError("--resume needs the search's name: give --name, or set `name` in the search file")
        if num_samples is not None:
            raise ConfigError("--num-samples cannot change a search that is resumed: leave it out")
        made = Search.resume(made.config.storage / made.config.name, registry=made.config.registry)
    if dry_run:
        _plan(made, as_json=as_json)
    else:
        run_search(made, verbose=verbose, as_json=as_json)


def plan(config: ConfigArgument, registry: RegistryOverride = None, as_json: JsonOption = False) -> None:
    """Say what a search would do, before anything is spent."""
    from rankloom.search import Search

    _plan(Search.from_yaml(config, registry=registry), as_json=as_json)


def run_search(made: Search, *, verbose: bool, as_json: bool, hint: bool = True) -> SearchResult:
    """Run a search under the live table and show what it found; `hint` adds the commands to run next."""
    from rankloom.hush import hush
    from rankloom.terminal import TerminalWatcher

    if not verbose:
        hush()
    with TerminalWatcher(errors()).showing() as watcher:
        try:
            result = made.run(watcher, verbose=verbose)
        except KeyboardInterrupt as stop:
            if str(stop):  # of somebody else
                errors().print(str(stop), markup=False, highlight=False, soft_wrap=True)
            if watcher.begun:
                errors().print("finished trials are in the registry; go on with the same command and --resume")
            raise
    if as_json:
        show_json(_result_json(result))
    else:
        _show_result(result)
    if result.best is None:
        why = next((f"; trial {trial.number}: {trial.message}" for trial in result.trials if trial.message), "")
        raise SearchError(f"no trial of {result.name!r} made an adapter{why}")
    if hint and not as_json:
        show_next(result)
    return result


def _result_json(result: SearchResult) -> dict[str, Any]:
    return {
        "search_id": result.search_id,
        "name": result.name,
        "status": result.status,
        "registry": result.registry,
        "best": result.best,
        "gain_over_prior": result.gain_over_prior,
        "trials": result.trials,
    }


def _show_result(result: SearchResult) -> None:
    ranked = sorted(
        result.trials,
        key=lambda trial: (trial.metrics["eval_loss"] is None, trial.metrics["eval_loss"] or 0.0),
    )
    show_table(
        ("trial", "state", "eval_loss", "steps", "r", "alpha", "learning_rate", "target_modules", "adapter"),
        [
            (
                trial.number,
                trial.status,
                trial.metrics["eval_loss"],
                trial.metrics["steps"],
                trial.params["r"],
                trial.params["lora_alpha"],
                trial.params["learning_rate"],
                trial.params["target_modules"],
                trial.adapter_id,
            )
            for trial in ranked
        ],
        title=f"leaderboard of {result.name}",
    )
    for trial in ranked:
        if trial.message:
            output().print(f"trial {trial.number}: {trial.message}", markup=False, highlight=False, soft_wrap=True)
    best, gain = result.best, result.gain_over_prior
    if best is None:
        return
    if gain is None:
        output().print(f"best: adapter {best.adapter_id}; trial 0 has no loss to compare with", highlight=False)
    elif best.number == 0:
        output().print(f"best: adapter {best.adapter_id}, the prior configuration: no trial beat it", highlight=False)
    else:
        prior = result.prior.metrics["eval_loss"] if result.prior else None
        output().print(
            f"best: adapter {best.adapter_id}, {gain:.4f} nats a token below the prior configuration ({cell(prior)})",
            highlight=False,
        )


def show_next(result: SearchResult) -> None:
    """Print the commands to run next."""
    if result.best is None:
        return
    flag = f"--registry {shlex.quote(_short(result.registry))}"
    output().print("\nnext:", style="bold")
    for line in (
        f"rankloom dashboard {flag}",
        f"rankloom adapters show {result.best.adapter_id} {flag}",
        f"rankloom promote {result.best.adapter_id} --output merged {flag}",
    ):
        output().print(f"  {line}", highlight=False, markup=False, soft_wrap=True)


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _plan(made: Search, *, as_json: bool) -> None:
    from rankloom.hush import hush

    hush()
    values = made.plan().to_dict()
    if as_json:
        show_json(values)
        return
    show_pairs([(name, value) for name, value in values.items()], title="a dry run: nothing was trained or kept")


@searches.command("list")
def list_searches(registry: RegistryOption = DEFAULT_REGISTRY, as_json: JsonOption = False) -> None:
    """List searches, newest first."""
    opened = open_registry(registry)
    found = [_as_it_is(opened, item) for item in opened.searches()]
    if as_json:
        show_json(found)
        return
    show_table(
        ("search", "name", "state", "trials", "best", "base", "started"),
        [
            (
                item.search_id,
                item.name,
                item.status,
                f"{item.finished_trials}/{item.num_samples}",
                item.best_value,
                item.base_identity,
                item.created_at,
            )
            for item in found
        ],
    )


@searches.command("show")
def show_search(
    search_ref: SearchArgument,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Show a search and its trials."""
    opened = open_registry(registry)
    found = _as_it_is(opened, opened.search(search_ref))
    trials = opened.trials(found.search_id)
    if as_json:
        show_json({"search": found, "trials": trials})
        return
    show_pairs(
        [
            ("search", found.search_id),
            ("name", found.name),
            ("state", found.status + (f": {found.message}" if found.message else "")),
            ("base", found.base_identity),
            ("dataset", found.dataset.get("source")),
            ("trials", f"{found.finished_trials}/{found.num_samples}"),
            ("best", found.best_value),
            ("started", found.created_at),
            ("ended", found.ended_at),
        ]
    )
    show_table(
        ("trial", "state", "eval_loss", "steps", "attempts", "lane", "slot", "adapter", "message"),
        [
            (t.number, t.status, t.eval_loss, t.steps, t.attempts, t.lane, t.slot, t.adapter_id, t.message or None)
            for t in trials
        ],
    )


def _as_it_is(registry: Registry, search: SearchRecord) -> SearchRecord:
    """A search as recorded, but for one whose process died without recording its end."""
    from dataclasses import replace

    from rankloom.control import status_now

    return replace(search, status=status_now(registry, search))


@spaces.command("list")
def list_spaces(as_json: JsonOption = False) -> None:
    """List the presets."""
    from rankloom_spaces import load_space, preset_names

    found = {name: sorted(load_space(name).parameters) for name in preset_names()}
    if as_json:
        show_json([{"name": name, "parameters": parameters} for name, parameters in found.items()])
        return
    show_table(("space", "parameters"), [(name, ", ".join(parameters)) for name, parameters in found.items()])


@spaces.command("show")
def show_space(
    space: Annotated[str, typer.Argument(metavar="SPACE", help="Preset or YAML path.")], as_json: JsonOption = False
) -> None:
    """Show a preset or a YAML file, checked."""
    from rankloom_spaces import load_space

    loaded = load_space(space)
    if as_json:
        show_json(loaded.to_dict())
        return
    output().print(loaded.to_yaml(), markup=False, highlight=False, end="")
