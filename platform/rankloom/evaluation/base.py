"""The base that adapters are measured on: proven by its content, quantized once, adapters swapped on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankloom.config import SearchConfig, parse_config
from rankloom.errors import ModelError, PromotionError
from rankloom.models import BaseModel, resolve_base, split_identity
from rankloom_registry import Adapter, Registry, fingerprint_base

if TYPE_CHECKING:
    from peft import PeftModel

    from rankloom.training.resident import ResidentBase

BASE = "base"  # the base alone, where an adapter's id could stand; no id is as short


class SharedBase:
    """One resident quantized base, and adapters on it, one of them active at a time.

    Attributes:
        base: Where the base lies.
        config: Settings of the first adapter's search: quantization, batch size, how rows are tokenised.
        adapters: The adapters, as they were asked for.
        resident: The base in memory.
        model: The base with all adapters on it.
    """

    base: BaseModel
    config: SearchConfig
    adapters: tuple[Adapter, ...]
    resident: ResidentBase
    model: PeftModel

    def __init__(self, registry: Registry, refs: Sequence[str], *, base: str | None = None) -> None:
        """Find the adapters, verify their files and prove their base; `load` then brings them into memory.

        Args:
            registry: Where they are registered.
            refs: One adapter or more: ids, names or name@alias.
            base: Where the base is now, if it moved.

        Raises:
            ModelError: The adapters do not share one base as their searches quantized it, or it is not there.
            PromotionError: The base at hand is not what the adapters were trained on.
            RegistryError: There is no such adapter, or its files are gone or changed.
        """
        self._registry = registry
        self.adapters = _each_once(registry, refs)
        first = self.adapters[0]
        self.config = search_settings(registry, first)
        self._check(self.adapters)
        self._folders = {adapter.adapter_id: registry.checkout(adapter) for adapter in self.adapters}
        self.base = base_of(registry, first, base)

    def load(self) -> None:
        """Bring the base and all adapters into memory."""
        first = self.adapters[0].adapter_id
        self._names = {first: "adapter0"}  # PEFT takes no dot in a name
        self.resident, self.model = load_with_adapter(
            self._folders[first], self.base, self.config, adapter_name=self._names[first]
        )
        self._check_biases(self.adapters[0])
        for adapter in self.adapters[1:]:
            self._add(adapter)

    def take(self, refs: Sequence[str]) -> None:
        """Take other adapters in place of those at hand; the base stays in memory.

        Args:
            refs: One adapter or more of the same base, as for a new object.

        Raises:
            ModelError: They need another base, or the same one quantized in another way.
            RegistryError: There is no such adapter, or its files are gone or changed.
        """
        adapters = _each_once(self._registry, refs)
        self._check((self.adapters[0], *adapters))
        self._folders |= {adapter.adapter_id: self._registry.checkout(adapter) for adapter in adapters}
        for adapter in adapters:
            if adapter.adapter_id not in self._names:
                self._add(adapter)
        self.adapters = adapters
        for adapter_id in self._names.keys() - {adapter.adapter_id for adapter in adapters}:
            self.model.delete_adapter(self._names.pop(adapter_id))

    def _add(self, adapter: Adapter) -> None:
        taken = set(self._names.values())
        name = next(name for place in range(len(taken) + 1) if (name := f"adapter{place}") not in taken)
        folder = self._folders[adapter.adapter_id]
        try:
            self.model.load_adapter(str(folder), adapter_name=name, is_trainable=False)
        except ValueError as error:
            raise ModelError(f"the adapter in {folder} cannot lie beside others: {error}; take it alone") from error
        self._names[adapter.adapter_id] = name
        self._check_biases(adapter)

    def _check(self, adapters: Sequence[Adapter]) -> None:
        first, *others = adapters
        for other in others:
            if other.base_content_root != first.base_content_root:
                raise ModelError(
                    f"adapters {first.adapter_id} and {other.adapter_id} belong to different bases, so they cannot "
                    "share one; take them one after the other"
                )
            if search_settings(self._registry, other).quantization != self.config.quantization:
                raise ModelError(
                    f"the searches of {first.adapter_id} and {other.adapter_id} quantized the base in different ways, "
                    "so the adapters cannot share one; take them one after the other"
                )

    def _check_biases(self, adapter: Adapter) -> None:
        if getattr(self.model.peft_config[self._names[adapter.adapter_id]], "bias", "none") != "none":
            raise ModelError(
                f"adapter {adapter.adapter_id} also trained the base's biases, which cannot be switched off again: "
                "what is measured beside it would not be the base"
            )

    @contextmanager
    def active(self, subject: str) -> Iterator[PeftModel]:
        """Give the model with one adapter active, or with none of them.

        Args:
            subject: An adapter's id, or `BASE`.
        """
        if subject == BASE:
            with self.model.disable_adapter():
                yield self.model
        else:
            self.model.set_adapter(self._names[subject])
            yield self.model

    def assert_unchanged(self) -> None:
        """Take the adapters away, and raise unless the base is bit for bit what was loaded.

        Raises:
            TrainingError: It is not.
        """
        self.model.unload()
        self.resident.assert_unchanged()


def _each_once(registry: Registry, refs: Sequence[str]) -> tuple[Adapter, ...]:
    found = [registry.adapter(ref) for ref in refs]
    return tuple({adapter.adapter_id: adapter for adapter in found}.values())


def base_of(registry: Registry, adapter: Adapter, given: str | None = None) -> BaseModel:
    """Return an adapter's base, proven by its content and not by its name.

    Args:
        registry: Where the adapter is registered.
        adapter: The adapter.
        given: Where the base is now; by default where it was when the adapter was trained.

    Raises:
        ModelError: There is no base at that place.
        PromotionError: There is one, but its content is not what the adapter was trained on.
    """
    recorded = registry.base(adapter.base_content_root)
    base = resolve_base(*(split_identity(recorded.identity) if given is None else (given, None)))
    found = fingerprint_base(base.path, identity=base.identity)
    if found.content_root != adapter.base_content_root:
        raise PromotionError(
            f"adapter {adapter.adapter_id} belongs to the base with content root "
            f"{adapter.base_content_root[:16]}… ({recorded.identity}), but {base.path} has "
            f"{found.content_root[:16]}…: give the folder of the right base with --base"
        )
    return base


def search_settings(registry: Registry, adapter: Adapter) -> SearchConfig:
    """Return the configuration of the search that made an adapter: how it was tokenised and quantized."""
    if adapter.search_id is None:
        return parse_config({"model_name_or_path": adapter.base_identity, "dataset": "unknown"})
    return parse_config(registry.search(adapter.search_id).config, source=f"search {adapter.search_id}")


def load_with_adapter(
    folder: Path, base: BaseModel, config: SearchConfig, **options: Any
) -> tuple[ResidentBase, PeftModel]:
    """Load the base as the search quantized it, with an adapter on it from a folder that `Registry.checkout` gave."""
    from peft import PeftModel

    from rankloom.training.resident import load_resident_base

    resident = load_resident_base(base.path, config.quantization, config.training)
    return resident, PeftModel.from_pretrained(resident.model, str(folder), is_trainable=False, **options)
