"""What people do with adapters: point aliases at them and discard them, by rules that every program shares."""

from __future__ import annotations

from collections.abc import Sequence

from rankloom_registry.errors import EventError
from rankloom_registry.events.kinds import AdapterDiscarded, AliasMoved, PromotionUndone
from rankloom_registry.names import validate_name
from rankloom_registry.records import Adapter, AliasMove, PromotionRecord
from rankloom_registry.registry import Registry


def move_alias(registry: Registry, ref: str, alias: str, *, why: str = "") -> AliasMove:
    """Let an alias of an adapter's name mean that adapter from now on; there is no moment at which it means nothing.

    Args:
        registry: The registry.
        ref: The adapter, as for `Registry.adapter`.
        alias: The alias, such as `prod`.
        why: The reason, for the log.

    Returns:
        The move, with the adapter that the alias meant until now.

    Raises:
        AdapterNotFoundError: If the reference means no adapter, or several.
        EventError: If the adapter's files were dropped.
        InvalidNameError: If the alias breaks the rule for names.
    """
    validate_name(alias)
    adapter = registry.adapter(ref)
    if adapter.status != "available":
        raise EventError(
            f"an alias means an adapter whose files are there, and {adapter.adapter_id} is {adapter.status}; "
            "choose another adapter"
        )
    registry.record(AliasMoved(name=adapter.name, alias=alias, adapter_id=adapter.adapter_id, why=why))
    return registry.alias_history(adapter.name, alias)[0]


def remove_alias(registry: Registry, ref: str, alias: str, *, why: str = "") -> list[AliasMove]:
    """Let an alias mean nothing any more.

    Args:
        registry: The registry.
        ref: The adapter that it means, as for `Registry.adapter`.
        alias: The alias.
        why: The reason, for the log.

    Returns:
        The move; one for each name, if the adapter was given the alias under several.

    Raises:
        AdapterNotFoundError: If the reference means no adapter, or several.
        EventError: If the adapter has no such alias.
    """
    adapter = registry.adapter(ref)
    # The adapter may have had another name when the alias was given.
    meant = [record for record in registry.aliases() if record.adapter_id == adapter.adapter_id]
    names = [record.name for record in meant if record.alias == alias]
    if not names:
        has = ", ".join(adapter.aliases) or "none"
        raise EventError(f"adapter {adapter.adapter_id} has no alias {alias!r} (it has: {has}); name one that it has")
    registry.record(*(AliasMoved(name=name, alias=alias, adapter_id=None, why=why) for name in names))
    return [registry.alias_history(name, alias)[0] for name in names]


def undo_promotion(registry: Registry, ref: str, *, why: str = "") -> tuple[PromotionRecord, AliasMove | None]:
    """Undo the last promotion of an adapter that was done: the alias that it moved means again what it meant before.

    Args:
        registry: The registry.
        ref: The adapter, as for `Registry.adapter`.
        why: The reason, for the log.

    Returns:
        The promotion as it is now, and the move of its alias, if it had moved one. What it had written stays.

    Raises:
        AdapterNotFoundError: If the reference means no adapter, or several.
        EventError: If no promotion of it is left to undo, if its alias has been moved since, or if the files of the
            adapter that the alias meant before were dropped.
    """
    adapter = registry.adapter(ref)
    last = next((one for one in registry.promotions(adapter.adapter_id) if one.status == "done"), None)
    if last is None:
        raise EventError(f"no promotion of adapter {adapter.adapter_id} is left to undo; see `rankloom adapters show`")
    back = None if last.alias is None else _back(registry, last, last.alias, why)
    registry.record(
        PromotionUndone(adapter_id=adapter.adapter_id, promotion_id=last.promotion_id, why=why),
        *([back] if back else []),
    )
    undone = next(one for one in registry.promotions(adapter.adapter_id) if one.promotion_id == last.promotion_id)
    return undone, registry.alias_history(back.name, back.alias)[0] if back else None


def _back(registry: Registry, promotion: PromotionRecord, reference: str, why: str) -> AliasMoved | None:
    """The move of an alias back to what it meant before a promotion; None if it meant the same adapter."""
    name, _, alias = reference.partition("@")
    moves = registry.alias_history(name, alias)
    if moves[0].adapter_id != promotion.adapter_id:
        raise EventError(
            f"{reference} was moved after promotion {promotion.promotion_id}, to {moves[0].adapter_id or 'nothing'}; "
            "move it with `rankloom adapters alias` if need be"
        )
    # They were recorded together; a clock that was set back between the two leaves the last move.
    own = ([move for move in moves if move.at >= promotion.created_at] or moves[:1])[-1]
    if own.previous == promotion.adapter_id:
        return None
    if own.previous is not None and (meant := registry.adapter(own.previous)).status != "available":
        raise EventError(
            f"{reference} meant adapter {meant.adapter_id} before, which is {meant.status}; "
            "let it mean another one with `rankloom adapters alias`"
        )
    return AliasMoved(name=name, alias=alias, adapter_id=own.previous, why=why)


def discard(registry: Registry, refs: Sequence[str], *, reason: str = "", force: bool = False) -> list[Adapter]:
    """Mark adapters as discarded, all of them or none; their files go when the registry's garbage is collected.

    Args:
        registry: The registry.
        refs: The adapters, as for `Registry.adapter`.
        reason: Why, for the log.
        force: Remove the aliases that mean one of them, too; without it, such an adapter is refused.

    Returns:
        The adapters, as they were.

    Raises:
        AdapterNotFoundError: If a reference means no adapter, or several.
        EventError: If one was discarded before, or an alias means it.
    """
    adapters = list({adapter.adapter_id: adapter for adapter in map(registry.adapter, refs)}.values())
    for adapter in adapters:
        if adapter.status == "discarded":
            raise EventError(f"adapter {adapter.adapter_id} was discarded before; leave it out")
        if adapter.aliases and not force:
            raise EventError(
                f"adapter {adapter.adapter_id} is what {adapter.name}@{adapter.aliases[0]} means; "
                "move or remove the alias first, or force it"
            )
    ids = {adapter.adapter_id for adapter in adapters}
    registry.record(
        *(
            AliasMoved(name=record.name, alias=record.alias, adapter_id=None, why=reason)
            for record in registry.aliases()
            if record.adapter_id in ids
        ),
        *(AdapterDiscarded(adapter_id=adapter.adapter_id, reason=reason) for adapter in adapters),
    )
    return adapters
