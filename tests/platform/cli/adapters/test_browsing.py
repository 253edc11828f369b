from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rankloom_registry import AdapterAnnotated, AliasMoved, Registry

Rankloom = Callable[..., Any]


def test_adapters_are_listed_by_tag(rankloom: Rankloom, world: Any) -> None:
    flags = ("--json", "--registry", world.registry)
    Registry.open(world.registry).record(AdapterAnnotated(adapter_id=world.adapters[1], tags_added=("kept",)))
    found = rankloom("adapters", "list", "--tag", "kept", *flags).json
    assert [adapter["adapter_id"] for adapter in found] == [world.adapters[1]] and found[0]["tags"] == ["kept"]
    assert rankloom("adapters", "list", "--tag", "kept", "--where", "r > 2", *flags).json == []
    assert rankloom("adapters", "list", "--tag", "other", *flags).json == []


def test_an_adapter_is_shown_with_its_story(rankloom: Rankloom, world: Any) -> None:
    good = world.adapters[0]
    flags = ("adapters", "show", good, "--registry", world.registry)
    plain = rankloom(*flags).out
    assert "learning curve" in plain and "note" not in plain
    Registry.open(world.registry).record(
        AdapterAnnotated(adapter_id=good, tags_added=("kept",), note="[bold]reads well[/bold]", why="spring review"),
        AliasMoved(name="negation", alias="prod", adapter_id=good),
    )
    done = rankloom(*flags)
    assert done.code == 0 and done.err == ""
    assert "[bold]reads well[/bold]" in done.out and "spring review" in done.out
    story = done.out[done.out.index("lineage") :]
    places = [story.index(f" {word} ") for word in ("base", "search", "trial", "adapter", "alias")]
    assert places == sorted(places)
    found = rankloom(*flags, "--json").json
    assert found.keys() == {
        "adapter", "base", "search", "trial", "curve", "evaluations", "promotions", "alias_moves", "events"
    }  # fmt: skip
    assert (found["search"]["name"], found["trial"]["number"]) == ("negation", 0)
    assert found["adapter"]["tags"] == ["kept"] and found["alias_moves"][0]["alias"] == "prod"
    assert [event["kind"] for event in found["events"]] == ["alias_moved", "adapter_annotated", "adapter_added"]
    assert found["events"][1]["why"] == "spring review"
