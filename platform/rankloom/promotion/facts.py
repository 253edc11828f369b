"""What the card of a promoted model says, gathered from the registry and from what was measured."""

from __future__ import annotations

import importlib.metadata
from typing import Any

from rankloom.promotion import Format
from rankloom.promotion.building import Built, Order
from rankloom.promotion.card import BaseFacts, CardFacts, Drift, Metric, licence_of, model_card
from rankloom.promotion.labels import label
from rankloom.promotion.measuring import HELD_OUT
from rankloom_registry import Adapter, Registry

VERSIONS = ("rankloom", "torch", "transformers", "peft", "bitsandbytes")
_PLAIN = 'from transformers import AutoModelForCausalLM\n\nmodel = AutoModelForCausalLM.from_pretrained("FOLDER")'
_LOADING: dict[Format, str] = {
    "safetensors": _PLAIN,
    "nf4": _PLAIN,
    "adapter": _PLAIN.replace("transformers", "peft").replace("Auto", "AutoPeft"),
    "gguf": 'import subprocess\n\nsubprocess.run(["ollama", "create", "NAME", "-f", "Modelfile"], check=True)',
}


def card_of(registry: Registry, adapter: Adapter, built: Built, order: Order, *, signed: bool) -> str:
    """Write the model card of a promotion.

    Args:
        registry: Where the adapter is registered.
        adapter: The adapter.
        built: What was made of it.
        order: What was asked for.
        signed: Whether the folder will be signed.
    """
    base = registry.base(adapter.base_content_root)
    facts = CardFacts(
        title=f"{adapter.name}, adapter {adapter.adapter_id}",
        format=order.format,
        recipe=None if order.format == "adapter" else order.recipe,
        base=BaseFacts(base.identity, base.content_root, base.structure, licence_of(built.base.path)),
        adapter_id=adapter.adapter_id,
        search=_search(registry, adapter),
        dataset=built.checks.get("dataset"),
        params=adapter.params,
        metrics=_metrics(adapter, built),
        drift=_drift(built),
        how_to_load=_LOADING[order.format],
        signature="model.sig, by OpenSSF Model Signing" if signed else None,
        versions=versions(),
    )
    return model_card(facts)


def versions() -> dict[str, str]:
    """The versions of the packages that have a hand in what a promotion writes."""
    return {name: importlib.metadata.version(name) for name in VERSIONS}


def _search(registry: Registry, adapter: Adapter) -> dict[str, Any] | None:
    if adapter.search_id is None:
        return None
    search = registry.search(adapter.search_id)
    data = {f"data {name}": value for name, value in search.dataset.items() if isinstance(value, str | int)}
    return {
        "name": search.name,
        "id": search.search_id,
        "trial": adapter.trial_number,
        "trials": search.num_samples,
        "metric": search.metric,
        "seed": search.seed,
    } | data


def _metrics(adapter: Adapter, built: Built) -> list[Metric]:
    found = []
    if adapter.eval_loss is not None:
        found.append(Metric("loss in the search, nats a token", adapter.eval_loss))
    if "made" in built.checks:
        models = built.checks["measured"][HELD_OUT]
        names = {
            "loss of this model": built.checks["made"],
            "loss of the adapter as trained": "adapter",
            "loss of its base alone": "base",
        }
        found += [Metric(text, models[name]["loss"], *(models[name]["interval"] or ())) for text, name in names.items()]
    return found


def _drift(built: Built) -> list[Drift]:
    return [
        Drift(f"{label(name)}; {split}", one["delta"], one["low"], one["high"], one["kl"], one["top1"])
        for split, models in built.checks.get("measured", {}).items()
        for name, one in models.items()
        if name not in ("rows", "adapter")
    ]
