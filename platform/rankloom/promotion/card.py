"""The model card: where a promoted model comes from, what was measured of it, and how to load it."""

from __future__ import annotations

import html
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import yaml

from rankloom.models import HUB_ID, split_identity

# How the hub's pages name what stands in a folder, and what it is to its base. A 'merge' is made of several models
# there; one adapter merged into its base is a fine-tune.
_ON_THE_HUB = {
    "safetensors": ("transformers", "finetune"),
    "adapter": ("peft", "adapter"),
    "nf4": ("transformers", "quantized"),
    "gguf": ("gguf", "quantized"),
}
# How licences begin, as they are handed out, to the hub's names of them.
_LICENCES = {
    r"^apache license\W+version 2\.0": "apache-2.0",
    r"^(the )?mit license|permission is hereby granted, free of charge": "mit",
    r"^bsd 3-clause": "bsd-3-clause",
    r"^bsd 2-clause": "bsd-2-clause",
    r"^gnu general public license\W+version 3": "gpl-3.0",
    r"^gnu affero general public license\W+version 3": "agpl-3.0",
    r"^gnu lesser general public license\W+version 3": "lgpl-3.0",
    r"^mozilla public license version 2\.0": "mpl-2.0",
    r"^llama 2 community license": "llama2",
    r"^(meta )?llama 3 community license": "llama3",
    r"^llama 3\.1 community license": "llama3.1",
    r"^llama 3\.2 community license": "llama3.2",
    r"^llama 3\.3 community license": "llama3.3",
}
# The hub refuses a card with a licence that it has no name for; these are the ones that language models have.
_HUB_LICENCES = {
    *_LICENCES.values(),
    *(
        "bigcode-openrail-m",
        "bigscience-bloom-rail-1.0",
        "cc-by-4.0",
        "cc-by-nc-4.0",
        "cc-by-nc-sa-4.0",
        "cc-by-sa-4.0",
    ),
    *("cc0-1.0", "gemma", "gpl-2.0", "isc", "llama4", "odc-by", "openrail", "unlicense"),
}
_MARKUP = re.compile(r"([\\`*_\[\]|~$#])")


class BaseFacts(NamedTuple):
    """The base: its name, what it holds, and its licence, if that is known."""

    identity: str
    content_root: str
    structure: str
    licence: str | None = None


class Metric(NamedTuple):
    """A figure of the model, with the bounds of its interval if it has one."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None


class Drift(NamedTuple):
    """How far a variant is from the adapter as it was trained: loss difference in nats a token, divergence, top-1."""

    variant: str
    delta: float
    low: float | None = None
    high: float | None = None
    kl: float | None = None
    top1: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """All that a card says; what is empty or None is left out.

    Attributes:
        title: Its heading.
        format: 'safetensors', 'adapter', 'nf4' or 'gguf'.
        recipe: How it was merged; None for an adapter.
        base: The base.
        adapter_id: The adapter in its registry.
        search: What found it, such as name, id, num_samples and metric.
        dataset: What it was measured on: source, sha256, rows.
        params: Its hyperparameters.
        metrics: What was measured.
        drift: How far it is from the adapter as it was trained.
        files: Names of files to their SHA-256.
        how_to_load: Python code.
        signature: Who signed the folder, and how to check it.
        versions: Names of packages to their versions.
    """

    title: str
    format: str
    base: BaseFacts
    adapter_id: str
    how_to_load: str
    recipe: str | None = None
    search: Mapping[str, Any] | None = None
    dataset: Mapping[str, Any] | None = None
    params: Mapping[str, Any] | None = None
    metrics: Sequence[Metric] = ()
    drift: Sequence[Drift] = ()
    files: Mapping[str, str] | None = None
    signature: str | None = None
    versions: Mapping[str, str] | None = None


def model_card(facts: CardFacts) -> str:
    """Write a card in Markdown, with the front matter that the hub reads.

    Paths are cut to their last part: a card may be published, and says nothing of the machine it was made on.

    Args:
        facts: What it says.

    Returns:
        The text of a README.md.
    """
    base = facts.base
    origin: dict[str, Any] = {
        "Base": _place(base.identity),
        "Content of the base (fingerprint)": base.content_root,
        "Structure of the base (fingerprint)": base.structure,
        "Licence of the base": base.licence or "not known: look it up before this model is passed on",
        "Adapter": facts.adapter_id,
        "Format": facts.format,
        "Recipe": facts.recipe,
    }
    held_out = {
        f"Measured on ({name})": _place(value) if isinstance(value, str) else value
        for name, value in (facts.dataset or {}).items()
    }
    searched = {f"Search ({name})": value for name, value in (facts.search or {}).items()}
    parts = [
        f"---\n{_front_matter(facts)}\n---",
        f"# {_text(facts.title)}",
        f"{_ABOUT.get(facts.format, 'Promoted')} with rankloom from the base `{_code(_place(base.identity))}`.",
        "## How to load\n\n" + _block(facts.how_to_load, "python"),
        "## Where it comes from\n\n" + _table(("What", "Value"), (origin | searched | held_out).items()),
        _section("Hyperparameters", ("Name", "Value"), (facts.params or {}).items()),
        _section(
            "Measured",
            ("Metric", "Value", "95% interval"),
            [(row.name, _number(row.value), _interval(row.low, row.high, "")) for row in facts.metrics],
        ),
        _section(
            "Drift from the adapter as it was trained",
            ("Variant", "Loss difference (nats a token)", "95% interval", "KL (nats a token)", "Same top-1"),
            [
                (
                    row.variant,
                    f"{row.delta:+.4f}",
                    _interval(row.low, row.high, "+"),
                    _number(row.kl),
                    "–" if row.top1 is None else f"{row.top1:.1%}",
                )
                for row in facts.drift
            ],
        ),
        _section("Files", ("Name", "SHA-256"), (facts.files or {}).items()),
        f"## Signature\n\n{_text(facts.signature)}" if facts.signature else "",
        _section("Versions", ("Package", "Version"), (facts.versions or {}).items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


_ABOUT = {
    "safetensors": "A LoRA adapter merged into its full-precision base",
    "adapter": "A LoRA adapter, promoted",
    "nf4": "A LoRA adapter merged into its full-precision base and quantized to NF4",
    "gguf": "A LoRA adapter merged into its full-precision base and written as GGUF",
}


def licence_of(folder: Path) -> str | None:
    """Find the licence of a model from what lies in its folder.

    Args:
        folder: The model's folder.

    Returns:
        What the front matter of its README.md says; otherwise the hub's name of the licence in its LICENSE file, or
        that file's first line; None if neither is there.
    """
    from huggingface_hub import metadata_load

    try:
        values = metadata_load(folder / "README.md") or {}
    except (OSError, ValueError, yaml.YAMLError):  # no card, or one that somebody broke: it tells no licence
        values = {}
    named = values.get("license")
    if named == "other":
        named = values.get("license_name") or named
    if isinstance(named, list):
        named = ", ".join(map(str, named))
    if named:
        return " ".join(str(named).split())
    for path in sorted(path for path in folder.glob("LICEN[CS]E*") if path.is_file()):
        with path.open("rb") as file:
            lines = [" ".join(line.split()) for line in file.read(4096).decode(errors="replace").splitlines()]
        start = " ".join(filter(None, lines))
        for pattern, licence in _LICENCES.items():
            if re.search(pattern, start, re.IGNORECASE):
                return licence
        if start:
            return next(filter(None, lines))[:120]
    return None


def _front_matter(facts: CardFacts) -> str:
    from huggingface_hub import ModelCardData

    library, relation = _ON_THE_HUB.get(facts.format, (None, None))
    name, _ = split_identity(facts.base.identity)
    licence = facts.base.licence.lower() if facts.base.licence else None
    more: dict[str, Any] = {}
    if licence and licence not in _HUB_LICENCES:
        more["license_name"] = re.sub(r"[^a-z0-9.]+", "-", licence).strip("-.")[:60] or "unnamed"
        licence = "other"
    if HUB_ID.fullmatch(name):  # the hub refuses a path
        more |= {"base_model": name, "base_model_relation": relation}
    data = ModelCardData(
        library_name=library,
        license=licence,
        pipeline_tag="text-generation",
        tags=["rankloom", "lora", "qlora"] + (["4-bit", "bitsandbytes"] if facts.format == "nf4" else []),
        **more,
    )
    return data.to_yaml()


def _place(text: str) -> str:
    """The last part of a path, or the whole of any other text."""
    return PurePosixPath(text).name if text.startswith(("/", "~", ".")) else text


def _section(title: str, head: Sequence[str], rows: Iterable[tuple[str, Any, *tuple[Any, ...]]]) -> str:
    table = _table(head, rows)
    return f"## {title}\n\n{table}" if table else ""


def _table(head: Sequence[str], rows: Iterable[tuple[str, Any, *tuple[Any, ...]]]) -> str:
    lines = [f"| {' | '.join(map(_text, row))} |" for row in rows if row[1] is not None]
    return "\n".join([f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *lines]) if lines else ""


def _text(value: object) -> str:
    """A value on one line, with nothing that Markdown or HTML would take for markup."""
    if isinstance(value, float):
        value = f"{value:.6g}"
    elif isinstance(value, list | tuple | set | frozenset):
        value = ", ".join(map(str, sorted(value) if isinstance(value, set | frozenset) else value))
    line = " ".join(str(value).split())
    return html.escape(_MARKUP.sub(r"\\\1", line), quote=False)


def _code(value: str) -> str:
    """A value that stands between backticks."""
    return " ".join(value.replace("`", "'").split()) or "-"


def _block(code: str, language: str) -> str:
    fence = "`" * max(3, 1 + max(map(len, re.findall(r"`+", code)), default=0))
    return f"{fence}{language}\n{code.strip()}\n{fence}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _interval(low: float | None, high: float | None, sign: str) -> str:
    return "–" if low is None or high is None else f"{low:{sign}.4f} to {high:{sign}.4f}"
