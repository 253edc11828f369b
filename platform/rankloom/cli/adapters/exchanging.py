"""`rankloom adapters import` and `export-config`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from rankloom.cli.adapters.browsing import RefArgument
from rankloom.cli.output import (
    DEFAULT_REGISTRY,
    JsonOption,
    RegistryOption,
    byte_bars,
    errors,
    open_registry,
    show_json,
    show_pairs,
)


class ConfigFormat(StrEnum):
    """What a configuration is written as."""

    yaml = "yaml"
    python = "python"


class Allowed(StrEnum):
    """What an import refuses unless it is named: the keys of `rankloom_registry.artifacts.FLAGS`."""

    modules_to_save = "modules-to-save"
    embeddings = "embeddings"
    tokenizer = "tokenizer"


def register(adapters: typer.Typer) -> None:
    """Add these commands."""
    adapters.command("import")(import_adapter)
    adapters.command("export-config")(export_config)


def import_adapter(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder that PEFT saved the adapter to.")],
    base: Annotated[str, typer.Option("--base", help="The base it was trained on: folder, .gguf file or hub id.")],
    name: Annotated[str | None, typer.Option(help="Its name; by default that of the folder.")] = None,
    allow: Annotated[list[Allowed] | None, typer.Option(help="Take what is refused by default.")] = None,
    registry: RegistryOption = DEFAULT_REGISTRY,
    as_json: JsonOption = False,
) -> None:
    """Register a PEFT adapter from elsewhere, after checking every file of it against its base."""
    from rankloom.belongs import find_base
    from rankloom_registry import import_adapter as take_in

    found = find_base(base)
    with byte_bars() as advance:
        adapter, new = take_in(
            registry,
            folder.expanduser(),
            found.path,
            name=name,
            identity=found.identity,
            allow=[one.value for one in allow or ()],
            progress=lambda done, total: advance("hashing the base", done, total),
        )
    if not new:
        errors().print(f"these files are registered already, as {adapter.adapter_id}", highlight=False)
    if as_json:
        show_json(adapter)
        return
    fields = ("adapter_id", "name", "base_identity", "base_content_root", "r", "lora_alpha", "target_modules")
    show_pairs([(field, getattr(adapter, field)) for field in (*fields, "effective_rank", "artifact_sha256")])


def export_config(
    ref: RefArgument,
    format: Annotated[
        ConfigFormat, typer.Option(help="A search file of this one point, or Python for PEFT.")
    ] = ConfigFormat.yaml,
    registry: RegistryOption = DEFAULT_REGISTRY,
) -> None:
    """Print an adapter's configuration, to train it again."""
    from rankloom.export_config import as_python, as_yaml

    opened = open_registry(registry)
    adapter = opened.adapter(ref)
    if format is ConfigFormat.yaml:
        text = as_yaml(opened, adapter)
    else:
        text = as_python(adapter, opened.checkout(adapter) if adapter.status == "available" else None)
    sys.stdout.write(text)
