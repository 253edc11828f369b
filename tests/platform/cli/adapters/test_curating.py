from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import pytest

from rankloom_registry import Registry

Rankloom = Callable[..., Any]


def test_an_adapter_is_tagged_noted_and_renamed(rankloom: Rankloom, world: Any) -> None:
    command = ("adapters", "tag", world.adapters[0])
    flags = ("--registry", world.registry)
    done = rankloom(*command, "long-rows", "kept", "--note", "reads [b]well[/b]", "--reason", "review", *flags)
    assert done.code == 0 and "reads [b]well[/b]" in done.out and '["kept", "long-rows"]' in done.out
    found = rankloom(*command, "new", "--remove", "kept", "--remove", "never", "--json", *flags).json
    assert (found["tags"], found["note"]) == (["long-rows", "new"], "reads [b]well[/b]")
    found = rankloom(*command, "--name", "renamed", "--note", "", "--json", *flags).json
    assert (found["name"], found["note"], found["tags"]) == ("renamed", "", ["long-rows", "new"])
    events = Registry.open(world.registry).events(world.adapters[0])
    assert [event.why for event in events] == ["", "", "review", ""]
    assert rankloom("adapters", "tag", "renamed", *flags).code == 0  # nothing to change: it is only shown
    assert len(Registry.open(world.registry).events(world.adapters[0])) == len(events)
    bad = rankloom(*command, "two words", *flags)
    assert bad.code == 1 and "'two words'" in bad.err


def test_an_alias_moves_and_goes(rankloom: Rankloom, world: Any) -> None:
    good, slow = world.adapters
    flags = ("--registry", world.registry)
    assert rankloom("adapters", "alias", slow, "prod", *flags).out == f"negation@prod: nothing → {slow}\n"
    done = rankloom("adapters", "alias", good, "prod", "--reason", "lower loss", *flags)
    assert done.code == 0 and done.out == f"negation@prod: {slow} → {good}\n"
    assert rankloom("adapters", "show", "negation@prod", "--json", *flags).json["adapter"]["adapter_id"] == good
    wrong = rankloom("adapters", "alias", slow, "prod", "--remove", *flags)
    assert wrong.code == 1 and "no alias 'prod'" in wrong.err
    (move,) = rankloom("adapters", "alias", "negation@prod", "prod", "--remove", "--json", *flags).json
    assert (move["previous"], move["adapter_id"]) == (good, None)
    history = Registry.open(world.registry).alias_history("negation", "prod")
    assert [move.why for move in history] == ["", "lower loss", ""]


def test_adapters_are_discarded(rankloom: Rankloom, world: Any) -> None:
    good, slow = world.adapters
    flags = ("--registry", world.registry)
    rankloom("adapters", "alias", good, "prod", *flags)
    refused = rankloom("adapters", "delete", slow, good, "--yes", *flags)
    assert refused.code == 1 and "negation@prod" in refused.err
    assert {one["status"] for one in rankloom("adapters", "list", "--json", *flags).json} == {"available"}
    done = rankloom("adapters", "delete", slow, "--yes", "--reason", "too slow", *flags)
    assert done.code == 0 and done.out == f"{slow} (negation) is discarded\n"
    (gone,) = rankloom("adapters", "delete", good, "--yes", "--force", "--json", *flags).json
    assert (gone["status"], gone["artifact_path"], gone["aliases"]) == ("discarded", None, [])
    assert rankloom("adapters", "verify", slow, *flags).code == 1
    assert Registry.open(world.registry).events(slow)[0].why == "too slow"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("answer", "code", "status"), [("n\n", 1, "available"), ("y\n", 0, "discarded")])
def test_a_person_is_asked(
    rankloom: Rankloom, world: Any, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, status: str
) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal(answer))
    done = rankloom("adapters", "delete", world.adapters[1], "--json", "--registry", world.registry)
    assert done.code == code and f"discard {world.adapters[1]}?" in done.err
    assert Registry.open(world.registry).adapter(world.adapters[1]).status == status


def test_nobody_can_be_asked(rankloom: Rankloom, world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n"))
    done = rankloom("adapters", "delete", world.adapters[1], "--registry", world.registry)
    assert done.code == 2 and "give --yes" in done.err
    assert Registry.open(world.registry).adapter(world.adapters[1]).status == "available"
