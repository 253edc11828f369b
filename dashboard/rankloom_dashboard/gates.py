"""The gates of a promotion as the dashboard shows them: what each asks, where it is, and its figures in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rankloom.promotion.labels import label
from rankloom_dashboard import formats

State = Literal["waiting", "running", "passed", "closed"]
_TITLES = {
    "base": "The base is the one that it was trained on",
    "disk": "There is room on the disk",
    "finite": "Merged, and every number is finite",
    "replay": "Computed again by another way, the weights are the same",
    "drift": "The model predicts what the adapter predicted, or is no worse",
    "serving": "Engines that can serve it",
}
_MODEL = ("base", "disk", "finite", "replay", "drift")
# By the first word of a stage that a promotion names in its progress.
_STAGES = {"fingerprint": "base", "merge,": "finite", "replay,": "replay", "measure": "drift"}
_VERDICTS = {
    "faithful": "faithful: it differs no more than rounding makes it",
    "no worse": "no worse than the adapter, within the tolerance",
    "worse": "worse than the adapter, beyond the tolerance",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One gate.

    Attributes:
        name: Its name in the record.
        title: What it asks, in fixed words.
        state: Where it is.
        figures: What it found, in fixed words and formatted numbers.
        problem: Why it is closed, in the words of whoever closed it.
    """

    name: str
    title: str
    state: State
    figures: str = ""
    problem: str = ""


def gates_info(format: str, told: Sequence[Mapping[str, Any]], stage: str | None, *, running: bool) -> list[Gate]:
    """Says where the gates of a promotion are, in their order.

    Args:
        format: What is made.
        told: What `on_gate` was called with, the name under `gate`.
        stage: The stage of the progress; None before the first.
        running: Whether the promotion goes on.
    """
    known = {str(figures["gate"]): figures for figures in told if figures.get("gate") in _TITLES}
    names = (*(["base"] if "base" in known else []), "serving") if format == "adapter" else _MODEL
    first = next((name for name in names if name not in known), None)
    by_stage = _STAGES.get(stage.split(" ")[0]) if stage else first
    now = by_stage if by_stage in names and by_stage not in known else first
    return [_gate(name, known.get(name), running=running and name == now) for name in names]


def recorded_gates(format: str, checks: Mapping[str, Any]) -> list[Gate]:
    """Says how the gates of a promotion were that the registry has recorded."""
    told = [{"gate": name, **figures} for name, figures in checks.items() if name in _MODEL and _is_record(figures)]
    for figures in told:
        if figures["gate"] == "finite":
            figures |= {name: checks.get(name) for name in ("modules_merged", "tensors_copied")}
    if _is_record(checks.get("serving")):
        told.append({"gate": "serving", "passed": True, "engines": checks["serving"]})
    return gates_info(format, told, None, running=False)


def _is_record(value: object) -> bool:
    return isinstance(value, dict)  # a registry's checks were written by others


def _gate(name: str, figures: Mapping[str, Any] | None, *, running: bool) -> Gate:
    if figures is None:
        return Gate(name=name, title=_TITLES[name], state="running" if running else "waiting")
    passed = figures.get("passed") is True
    return Gate(
        name=name,
        title=_TITLES[name],
        state="passed" if passed else "closed",
        figures=formats.cut(_words(name, figures)),
        problem=str(figures.get("problem", "")),
    )


def _words(name: str, figures: Mapping[str, Any]) -> str:
    """Writes a gate's figures; one that was closed early has few or none."""
    match name, figures:
        case "base", {"content_root": str(root), **rest}:
            touched = rest.get("touched_tensors")
            modified = "" if touched is None else f"; the adapter modifies {touched:,} of its tensors"
            return f"content root {root[:16]}…{modified}"
        case "disk", {"needed_bytes": int(needed), "free_bytes": int(free)}:
            return f"needs {formats.size(needed)}, {formats.size(free)} are free"
        case "finite", {"modules_merged": int(merged), "tensors_copied": int(copied)}:
            return f"{merged:,} modules merged, {copied:,} tensors copied bit for bit"
        case "replay", {"elements_checked": int(elements), "largest_error_ulp": float(error), **rest}:
            how = "every one" if rest.get("how") == "full" else "samples"
            return f"{elements:,} elements ({how}), off by {error:.2g} units in the last place at most"
        case "drift", {"verdict": str(verdict), "tolerance": int() | float() as tolerance, **rest}:
            surer = "" if rest.get("certain") else "; more held-out rows would make this surer"
            recipe = f"; recommended recipe: {rest['recommended']}" if rest.get("recommended") else ""
            return f"{_VERDICTS.get(verdict, 'unknown verdict')} ({tolerance:.4g} nats a token){surer}{recipe}"
        case "serving", {"engines": dict(engines)}:
            return "; ".join(_engine(engine, verdict) for engine, verdict in engines.items())
    return ""


def _engine(engine: str, verdict: Mapping[str, Any]) -> str:
    if not _is_record(verdict) or not verdict.get("ok"):
        return f"{engine} cannot"
    return f"{engine} can, from the folder normalised" if verdict.get("needs_normalised") else f"{engine} can"


def comparison_rows(measured: Mapping[str, Mapping[str, Any]], made: str | None) -> list[dict[str, Any]]:
    """Sets the models that a promotion measured side by side, the adapter as trained first.

    Args:
        measured: As a promotion's checks hold it: by split, each model.
        made: Which of them is let out.

    Returns:
        One row a split and model; losses in nats a token, intervals of 95%.
    """
    rows = []
    for split, models in measured.items():
        if not _is_record(models):
            continue
        for name, figures in models.items():
            if not _is_record(figures):
                continue  # their number
            rows.append(
                {
                    "rows": formats.cut(f"{split} ({models.get('rows')})", 200),
                    "model": formats.cut(label(name), 200) + (" ★" if name == made else ""),
                    "loss": figures.get("loss"),
                    "loss interval": _interval(figures.get("interval")),
                    "difference": figures.get("delta"),
                    "difference interval": _interval((figures.get("low"), figures.get("high")), signed=True),
                    "kl": figures.get("kl"),
                    "top1": figures.get("top1"),
                }
            )
    return rows


def _interval(ends: object, *, signed: bool = False) -> str | None:
    match ends:
        case (int() | float() as low, int() | float() as high):
            return f"{low:+.4f} … {high:+.4f}" if signed else f"{low:.4f} … {high:.4f}"
    return None
