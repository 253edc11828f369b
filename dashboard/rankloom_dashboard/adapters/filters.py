"""The filter of the list of adapters: what the widgets say, as the text that the command line takes, and back."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlglot import exp, parse_one
from sqlglot.errors import SqlglotError

AMONG = ("base_identity", "search_name", "target_modules", "status")
LEAST = ("r", "learning_rate", "steps")
MOST = ("r", "learning_rate", "eval_loss", "train_loss")
LONGEST = 4000  # characters of a filter, as the registry takes it


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What a filter asks for.

    Attributes:
        among: For a column the values that it may have.
        least: For a column the least value.
        most: For a column the greatest value.
        rest: What else it asks for, as text; the widgets cannot say it, and leave it alone.
    """

    among: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    most: Mapping[str, float] = field(default_factory=dict)
    rest: str = ""


def read(where: str) -> Filter:
    """Takes a filter's text apart.

    Args:
        where: As for `Registry.adapters`; a text that nobody can read is all `rest`.

    Returns:
        What it asks for; `write` gives a text that means the same.
    """
    if not where.strip() or len(where) > LONGEST:
        return Filter(rest=where.strip())
    try:
        condition = parse_one(where, dialect="duckdb", into=exp.Condition)
        clauses = list(condition.flatten(unnest=False)) if isinstance(condition, exp.And) else [condition]
        among: dict[str, tuple[str, ...]] = {}
        bounds: dict[type[exp.Expr], dict[str, float]] = {exp.GTE: {}, exp.LTE: {}}
        rest: list[str] = []
        for clause in clauses:
            column, values = _among(clause)
            if column in AMONG and column not in among and values:
                among[column] = values
                continue
            column, bound = _bound(clause)
            known = bounds.get(type(clause), {})
            if (
                column
                and column in (LEAST if isinstance(clause, exp.GTE) else MOST)
                and bound is not None
                and column not in known
            ):
                known[column] = bound
                continue
            text = clause.sql(dialect="duckdb")
            rest.append(f"({text})" if isinstance(clause, exp.Or) else text)
    except (SqlglotError, RecursionError):
        return Filter(rest=where.strip())
    return Filter(among=among, least=bounds[exp.GTE], most=bounds[exp.LTE], rest=" and ".join(rest))


def write(wanted: Filter) -> str:
    """Writes a filter's text, for `Registry.adapters` and `rankloom adapters list --where`."""
    clauses = []
    for column, values in wanted.among.items():
        quoted = [_quoted(value) for value in values]
        if quoted:
            clauses.append(f"{column} = {quoted[0]}" if len(quoted) == 1 else f"{column} in ({', '.join(quoted)})")
    for sign, bounds in ((">=", wanted.least), ("<=", wanted.most)):
        clauses += [f"{column} {sign} {_number(bound)}" for column, bound in bounds.items()]
    return " and ".join([*clauses, *([wanted.rest] if wanted.rest else [])])


def command(where: str, *, tag: str | None, order_by: str, limit: int, registry: Path) -> str:
    """Writes the command that lists the same adapters."""
    options = {"--where": where, "--tag": tag, "--order-by": order_by, "--limit": str(limit), "--registry": registry}
    given = [f"{option} {shlex.quote(str(value))}" for option, value in options.items() if value]
    return " ".join(["rankloom adapters list", *given])


def _among(clause: exp.Expr) -> tuple[str | None, tuple[str, ...]]:
    """The column of `column = 'text'` or `column in ('text', …)`, and the texts."""
    match clause:
        case exp.EQ():
            items: list[Any] = [clause.expression]
        case exp.In() if not clause.args.get("query"):
            items = clause.expressions
        case _:
            return None, ()
    if not all(isinstance(item, exp.Literal) and item.is_string for item in items):
        return None, ()
    return _column(clause.this), tuple(dict.fromkeys(str(item.this) for item in items))


def _bound(clause: exp.Expr) -> tuple[str | None, float | None]:
    """The column of `column <= number`, and the number."""
    if not isinstance(clause, exp.GTE | exp.LTE):
        return None, None
    literal, sign = clause.expression, 1
    if isinstance(literal, exp.Neg):
        literal, sign = literal.this, -1
    if not isinstance(literal, exp.Literal) or literal.is_string:
        return None, None
    number = sign * float(literal.this)
    return _column(clause.this), number if math.isfinite(number) else None


def _column(node: Any) -> str | None:
    plain = isinstance(node, exp.Column) and not node.table and isinstance(node.this, exp.Identifier)
    return node.name.lower() if plain else None


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
