"""The rows of the list of adapters, and what is selected in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rankloom_dashboard import formats
from rankloom_dashboard.leaderboard import usable_loss
from rankloom_registry import Adapter

_CELL = 200  # characters; a cell shows fewer
_NAME = 80  # characters of a name that stands among others


def title(adapter: Adapter) -> str:
    """Names an adapter for its reader: all adapters of a search have the search's name, so its trial is named, too."""
    trial = "" if adapter.trial_number is None else f" #{adapter.trial_number}"
    aliases = "".join(f" @{alias}" for alias in adapter.aliases)
    return f"{formats.cut(adapter.name, _NAME)}{trial}{aliases}"


def described(adapter: Adapter) -> str:
    """Names an adapter, and says how good it is and which it is."""
    return f"{title(adapter)} · eval loss {formats.loss(adapter.eval_loss)} · {formats.shorten(adapter.adapter_id)}"


def rows(adapters: Sequence[Adapter]) -> list[dict[str, Any]]:
    """Builds one row an adapter, in the order given.

    Args:
        adapters: The adapters.

    Returns:
        Rows of plain values; `files` is a list of one word, as a column of labels wants it.
    """
    return [
        {
            "name": adapter.name,
            "trial": adapter.trial_number,
            "aliases": list(adapter.aliases),
            "tags": list(adapter.tags),
            "files": [adapter.status],
            "eval_loss": usable_loss(adapter.eval_loss),
            "train_loss": usable_loss(adapter.train_loss),
            "r": adapter.r,
            "lora_alpha": adapter.lora_alpha,
            "learning_rate": adapter.learning_rate,
            "target_modules": None if adapter.target_modules is None else formats.cut(adapter.target_modules, _CELL),
            "lora_dropout": adapter.lora_dropout,
            "steps": adapter.steps,
            "effective_rank": adapter.effective_rank,
            "update_norm": adapter.update_norm,
            "memory": formats.size(adapter.peak_memory_bytes),
            "time": formats.duration(adapter.wall_s),
            "search": adapter.search_name,
            "base": formats.cut(formats.base(adapter.base_identity), _CELL),
            "created": formats.when(adapter.created_at)[:16],
            "adapter": adapter.adapter_id,
        }
        for adapter in adapters
    ]


def selection(wanted: Sequence[str], on_page: Sequence[str], ticked: Sequence[str]) -> list[str]:
    """Says what is selected once rows of one page are ticked: what stands on other pages stays, in its order.

    Args:
        wanted: Selected until now.
        on_page: The adapters on the page.
        ticked: Those of them that are ticked.

    Returns:
        The selected adapters' ids; newly ticked ones come last.
    """
    kept = [one for one in wanted if one in ticked or one not in on_page]
    return [*kept, *(one for one in ticked if one not in kept)]
