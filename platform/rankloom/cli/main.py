"""The application, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any

import typer
from typer.exceptions import TyperException

from rankloom.cli import adapters, base, evaluate, machine, promote, quickstart, registry, searches
from rankloom.cli.output import errors
from rankloom.errors import RankloomError
from rankloom_registry import RegistryError
from rankloom_registry.errors import RegistryRecoveredWarning
from rankloom_spaces import SpaceError

DEBUG = "--debug"
USAGE, INTERRUPTED = 2, 130

app = typer.Typer(
    name="rankloom",
    help="Finds the QLoRA adapter worth keeping, and keeps it safe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def options(
    debug: bool = typer.Option(False, DEBUG, help="Show the stack trace of an error."),
) -> None:
    """Finds the QLoRA adapter worth keeping, and keeps it safe."""


for module in (quickstart, searches, adapters, base, evaluate, promote, registry, machine):
    module.register(app)


def main() -> None:
    """Run the command line; exits 0 when done, 1 when it failed, 2 on wrong usage, 130 when interrupted."""
    # --debug may stand anywhere, as people add it to the end of the line that failed.
    debug = DEBUG in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    with warnings.catch_warnings():
        warnings.simplefilter("always", RegistryRecoveredWarning)
        warnings.showwarning = _show_warning(warnings.showwarning)
        code = _run(arguments, debug=debug)
    sys.stdout.flush()
    sys.exit(code)


def _run(arguments: list[str], *, debug: bool) -> int:
    try:
        code = app(args=arguments, prog_name="rankloom", standalone_mode=False)
        if code == INTERRUPTED:  # typer turns Ctrl-C into this exit code, without a word
            raise KeyboardInterrupt
    except TyperException as error:
        context = getattr(error, "ctx", None)
        if context is not None and error.exit_code == USAGE:
            print(context.get_usage(), file=sys.stderr)
        print(f"error: {error.format_message()}", file=sys.stderr)
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        errors().print("interrupted", style="yellow")
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone, as after `| head`; Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    # The outermost boundary: whatever else went wrong reaches the user as one message.
    except Exception as error:  # noqa: BLE001
        code = 1
        if debug:
            traceback.print_exc()
        else:
            errors().print(_message(error), style="red", markup=False, highlight=False, soft_wrap=True)
    return code or 0


def _show_warning(others: Callable[..., None]) -> Callable[..., None]:
    """What a registry was recovered from is a line for the user; every other warning is a developer's."""

    def show(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, RegistryRecoveredWarning):
            errors().print(f"warning: {message}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        else:
            others(message, category, *where)

    return show


def _message(error: Exception) -> str:
    if isinstance(error, RankloomError | RegistryError | SpaceError) or type(error).__module__.startswith("rankloom"):
        return f"error: {error}"
    text = " ".join(str(error).split())[:500]
    return f"error: {type(error).__name__}: {text} (run it again with --debug for the stack trace)"
