"""Builds the SQL for a user's filter and ordering of adapters; what the user wrote is never executed itself."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import Any

from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError

from rankloom_registry.errors import QueryError

_MAX_LENGTH = 4000
_OPERATORS: dict[type[exp.Expr], str] = {
    exp.And: "AND",
    exp.Or: "OR",
    exp.EQ: "=",
    exp.NEQ: "<>",
    exp.LT: "<",
    exp.LTE: "<=",
    exp.GT: ">",
    exp.GTE: ">=",
    exp.Is: "IS",
    exp.Like: "LIKE",
    exp.ILike: "ILIKE",
}
_ORDER = re.compile(r"\s*(\w+)(?:\s+(asc|desc))?(?:\s+nulls\s+(first|last))?\s*", re.IGNORECASE)
_ALLOWED = "comparisons of columns with literals, joined by and, or, not, in, between, like, is null"


def select_adapters(
    where: str | None,
    order_by: str | None,
    limit: int | None,
    tag: str | None,
    columns: Collection[str],
    *,
    offset: int = 0,
) -> tuple[str, list[Any]]:
    """Build what follows `SELECT columns` to read adapters, newest first unless ordered otherwise.

    Args:
        where: A filter as for `build_where`, or None.
        order_by: An ordering as for `build_order`, or None.
        limit: The most rows, or None for all.
        tag: Only adapters that have this tag; None for all.
        columns: The names that may be used, in lower case.
        offset: How many of the first rows to leave out.

    Returns:
        SQL with `?` for each literal, and the literals.

    Raises:
        QueryError: If one of them breaks its rule.
    """
    check_limit(limit)
    if isinstance(offset, bool) or not isinstance(offset, int) or offset < 0:
        raise QueryError(f"an offset is a whole number from 0, got {offset!r}")
    query, parameters = filter_adapters(where, tag, columns)
    order = build_order(order_by, columns) + ", " if order_by is not None else ""
    order += "sequence DESC"
    limited = ("" if limit is None else f" LIMIT {limit}") + (f" OFFSET {offset}" if offset else "")
    return f"{query} ORDER BY {order}{limited}", parameters


def filter_adapters(where: str | None, tag: str | None, columns: Collection[str]) -> tuple[str, list[Any]]:
    """Build the part of `select_adapters` that says which adapters, in no order; arguments and errors are the same."""
    condition, parameters = build_where(where, columns) if where is not None else ("TRUE", [])
    if tag is not None:
        condition += " AND list_contains(tags, ?)"
        parameters.append(tag)
    return f"FROM adapters WHERE {condition}", parameters


def check_limit(limit: int | None) -> None:
    """Raise a `QueryError` unless `limit` is a positive whole number or None."""
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise QueryError(f"limit is a positive whole number or None, got {limit!r}")


def build_where(where: str, columns: Collection[str]) -> tuple[str, list[Any]]:
    """Build a condition from a filter such as `eval_loss < 2 and r <= 16`.

    Args:
        where: Comparisons of columns with literals, joined by `and`, `or`, `not`, `in`, `between`, `like`, `is null`.
        columns: The names that may be used, in lower case.

    Returns:
        A condition with `?` for each literal, and the literals.

    Raises:
        QueryError: If the filter holds anything else, or names a column that there is not.
    """
    if len(where) > _MAX_LENGTH:
        raise QueryError(f"a filter has at most {_MAX_LENGTH} characters, got {len(where)}; use Registry.sql")
    parameters: list[Any] = []
    try:
        return _build(parse_one(where, dialect="duckdb", into=exp.Condition), columns, parameters), parameters
    except SqlglotError as error:
        raise QueryError(f"cannot read the filter {where!r}; it takes {_ALLOWED}") from error
    except RecursionError:  # hundreds of nested parentheses
        raise QueryError("the filter is nested too deeply; use Registry.sql") from None


def build_order(order_by: str, columns: Collection[str]) -> str:
    """Build an ordering from one such as `eval_loss, created_at desc`; rows without a value come last.

    Args:
        order_by: Columns, each with `asc` or `desc` and `nulls first` or `nulls last` if need be.
        columns: The names that may be used, in lower case.

    Returns:
        The same, spelled out.

    Raises:
        QueryError: If it holds anything else, or names a column that there is not.
    """
    if len(order_by) > _MAX_LENGTH:
        raise QueryError(f"an ordering has at most {_MAX_LENGTH} characters, got {len(order_by)}; use Registry.sql")
    terms = []
    for part in order_by.split(","):
        if not (match := _ORDER.fullmatch(part)):
            raise QueryError(f"an ordering is columns with 'asc' or 'desc', got {part!r}; use Registry.sql for more")
        column, direction, nulls = match.groups()
        terms.append(f"{_column(column, columns)} {(direction or 'asc').upper()} NULLS {(nulls or 'last').upper()}")
    return ", ".join(terms)


def _build(node: exp.Expr, columns: Collection[str], parameters: list[Any]) -> str:
    def inner(child: exp.Expr) -> str:
        return _build(child, columns, parameters)

    # An argument that is not looked at below, such as the subquery of IN, must not get lost on the way.
    arguments = {name for name, value in node.args.items() if value not in (None, False, [])}
    match node:
        case exp.Paren() | exp.Not() | exp.Neg() if arguments == {"this"}:
            prefix = {exp.Not: "NOT ", exp.Neg: "-"}.get(type(node), "")
            return f"({prefix}{inner(node.this)})"
        case exp.Between() if arguments == {"this", "low", "high"}:
            return f"({inner(node.this)} BETWEEN {inner(node.args['low'])} AND {inner(node.args['high'])})"
        case exp.In() if arguments == {"this", "expressions"}:
            return f"({inner(node.this)} IN ({', '.join(inner(item) for item in node.expressions)}))"
        case exp.Column() if arguments == {"this"} and isinstance(node.this, exp.Identifier):
            return _column(node.name, columns)
        case exp.Null():
            return "NULL"
        case exp.Boolean():
            return "TRUE" if node.this else "FALSE"
        case exp.Literal():
            parameters.append(node.this if node.is_string else _number(node.this))
            return "?"
    if type(node) in _OPERATORS and arguments - {"negate"} == {"this", "expression"}:
        negate = "NOT " if "negate" in arguments else ""
        return f"({inner(node.this)} {negate}{_OPERATORS[type(node)]} {inner(node.args['expression'])})"
    raise QueryError(f"a filter takes {_ALLOWED}; got {node.sql(dialect='duckdb')!r}; use Registry.sql for more")


def _column(name: str, columns: Collection[str]) -> str:
    if name.lower() in columns:
        return f'"{name.lower()}"'
    near = difflib.get_close_matches(name.lower(), columns, n=1, cutoff=0.0)
    raise QueryError(f"there is no column {name!r}; the nearest is {near[0]!r} (all: {', '.join(columns)})")


def _number(text: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        return float(text)
