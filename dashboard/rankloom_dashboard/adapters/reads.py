"""Reads of adapters: those that pass a filter, page by page, and what they can be filtered by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import streamlit as st

from rankloom.export_config import as_python, as_yaml
from rankloom_dashboard.adapters.filters import AMONG
from rankloom_dashboard.data import WAIT_SECONDS, Stamp, key
from rankloom_registry import Adapter, AdapterNotFoundError, Registry

NEWEST = 200  # adapters that a page offers to choose from; any other can be typed


@dataclass(frozen=True, slots=True, kw_only=True)
class Facets:
    """What adapters can be filtered by: the values of some columns, and the tags, the most frequent first."""

    values: dict[str, tuple[str, ...]]
    tags: tuple[str, ...]


def counts(where: str = "", *, tag: str | None = None) -> tuple[int, int]:
    """Reads how many adapters pass a filter, as for `page`, and how many there are."""
    return _counts(*key(), where.strip() or None, tag or None)


def page(
    where: str = "", *, tag: str | None = None, order_by: str = "", limit: int = NEWEST, offset: int = 0
) -> list[Adapter]:
    """Reads one page of the adapters that pass a filter.

    Args:
        where: As for `Registry.adapters`; empty for all.
        tag: Only those that have it.
        order_by: As for `Registry.adapters`; empty for the newest first.
        limit: The most adapters on a page.
        offset: How many stand on the pages before it.

    Raises:
        QueryError: The filter or the ordering breaks its rule.
    """
    return _page(*key(), where.strip() or None, tag or None, order_by.strip() or None, limit, offset)


def named(refs: Sequence[str]) -> tuple[list[Adapter], list[str]]:
    """Reads the adapters that references mean, each once, and says of the other references why they mean none."""
    return _named(*key(), tuple(refs))


def facets() -> Facets:
    """Reads what adapters can be filtered by."""
    return _facets(*key())


def configuration(adapter: Adapter, form: Literal["yaml", "python"]) -> str:
    """Writes an adapter's configuration as `rankloom adapters export-config` does.

    Raises:
        RankloomError: It cannot be written in that form.
        SpaceError: No search space can hold it.
        ArtifactError: Its files are gone or changed.
    """
    return _configuration(*key(), adapter.adapter_id, form)


@st.cache_data(ttl=60, max_entries=32, show_spinner=False)
def _counts(path: str, stamp: Stamp, where: str | None, tag: str | None) -> tuple[int, int]:
    with Registry.open(path, wait_s=WAIT_SECONDS).held() as reader:
        return reader.count_adapters(where, tag=tag), reader.count_adapters()


@st.cache_data(ttl=60, max_entries=32, show_spinner=False)
def _page(
    path: str, stamp: Stamp, where: str | None, tag: str | None, order_by: str | None, limit: int, offset: int
) -> list[Adapter]:
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        return registry.adapters(where, order_by, limit, tag=tag, offset=offset)


@st.cache_data(ttl=60, max_entries=32, show_spinner=False)
def _named(path: str, stamp: Stamp, refs: tuple[str, ...]) -> tuple[list[Adapter], list[str]]:
    found: dict[str, Adapter] = {}
    unknown: list[str] = []
    with Registry.open(path, wait_s=WAIT_SECONDS).held() as reader:
        for ref in refs:
            try:
                adapter = reader.adapter(ref)
            except AdapterNotFoundError as error:
                unknown.append(str(error))
            else:
                found[adapter.adapter_id] = adapter
    return list(found.values()), unknown


@st.cache_data(ttl=60, max_entries=4, show_spinner=False)
def _facets(path: str, stamp: Stamp) -> Facets:
    each = [f"SELECT '{column}' AS kind, {column} AS value FROM adapters" for column in AMONG]
    every = " UNION ALL ".join([*each, "SELECT 'tag', unnest(tags) FROM adapters"])
    counted = f"SELECT kind, value, count(*) AS n FROM ({every}) WHERE value IS NOT NULL GROUP BY ALL"
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        rows = registry.sql(f"SELECT kind, value FROM ({counted}) ORDER BY kind, n DESC, value")
    found = {kind: tuple(row["value"] for row in rows if row["kind"] == kind) for kind in (*AMONG, "tag")}
    return Facets(tags=found.pop("tag"), values=found)


@st.cache_data(ttl=60, max_entries=32, show_spinner=False)
def _configuration(path: str, stamp: Stamp, adapter_id: str, form: Literal["yaml", "python"]) -> str:
    with Registry.open(path, wait_s=WAIT_SECONDS) as registry:
        adapter = registry.adapter(adapter_id)
        if form == "yaml":
            return as_yaml(registry, adapter)
        return as_python(adapter, registry.checkout(adapter) if adapter.status == "available" else None)
