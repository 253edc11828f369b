from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest

from rankloom_registry import (
    AdapterAnnotated,
    AdapterDiscarded,
    AliasMoved,
    BaseFingerprint,
    BaseSeen,
    Evaluated,
    EventError,
    InvalidNameError,
    Promoted,
    Registry,
    discard,
    move_alias,
    remove_alias,
    undo_promotion,
)


def test_tags_and_notes(searched: Registry) -> None:
    def annotate(**changes: object) -> AdapterAnnotated:
        return AdapterAnnotated(adapter_id="0bcd-adapter", **changes)  # type: ignore[arg-type]

    # In one transaction, as events of several senders may be committed together.
    searched.record(annotate(tags_added=["b", "a"]), annotate(tags_added=["c"], tags_removed=["b", "never"]))
    searched.record(annotate(note="good on long rows", why="review of May"))
    adapter = searched.adapter("0bcd")
    assert (adapter.name, adapter.tags, adapter.note) == ("first-0", ("a", "c"), "good on long rows")
    searched.record(annotate(name="renamed", note=""))
    adapter = searched.adapter("renamed")
    assert (adapter.adapter_id, adapter.tags, adapter.note) == ("0bcd-adapter", ("a", "c"), "")
    searched.record(AdapterAnnotated(adapter_id="1bcd-adapter", tags_added=["a"]))

    def tagged(*args: object, **kwargs: object) -> list[int | None]:
        return [adapter.trial_number for adapter in searched.adapters(*args, **kwargs)]  # type: ignore[arg-type]

    assert tagged(tag="a") == [1, 0]
    assert tagged("r <= 8", "eval_loss", 5, tag="a") == [0]
    assert tagged(tag="a", limit=1, order_by="eval_loss") == [1]
    assert tagged(tag="x' or 'a'='a") == tagged(tag="b") == []
    assert searched.sql("select count(*) as n from adapters where list_contains(tags, 'c')") == [{"n": 1}]
    (_, noted, *_) = searched.events("0bcd-adapter")
    assert (noted.kind, noted.why) == ("adapter_annotated", "review of May")
    with pytest.raises(EventError, match="'ghost'"):
        searched.record(AdapterAnnotated(adapter_id="ghost", tags_added=["a"]))


def test_an_alias_keeps_its_history(searched: Registry) -> None:
    searched.record(AliasMoved(name="first-1", alias="prod", adapter_id="0bcd-adapter"))
    move = move_alias(searched, "1bcd", "prod", why="lower loss")
    assert (move.name, move.previous, move.adapter_id) == ("first-1", "0bcd-adapter", "1bcd-adapter")
    assert searched.adapter("first-1@prod").adapter_id == "1bcd-adapter"
    assert move_alias(searched, "2bcd", "prod").previous is None  # another name
    (gone,) = remove_alias(searched, "1bcd", "prod", why="withdrawn")
    assert (gone.previous, gone.adapter_id, gone.why) == ("1bcd-adapter", None, "withdrawn")
    history = searched.alias_history("first-1", "prod")
    assert [(move.previous, move.adapter_id) for move in history] == [
        ("1bcd-adapter", None),
        ("0bcd-adapter", "1bcd-adapter"),
        (None, "0bcd-adapter"),
    ]
    assert [move.why for move in history] == ["withdrawn", "lower loss", ""]
    assert history[0].who and history[0].at >= history[1].at >= history[2].at
    assert searched.alias_history("first-1") == history
    assert searched.alias_history("first-1", "other") == searched.alias_history("prod") == []


def test_what_an_alias_cannot_do(searched: Registry) -> None:
    with pytest.raises(EventError, match="no alias 'prod' .*none"):
        remove_alias(searched, "0bcd", "prod")
    with pytest.raises(InvalidNameError):
        move_alias(searched, "0bcd", "a b")
    searched.record(AdapterDiscarded(adapter_id="3bcd-adapter", reason=""))
    with pytest.raises(EventError, match="3bcd-adapter is discarded"):
        move_alias(searched, "3bcd", "prod")
    assert searched.aliases() == []


def test_an_alias_given_under_an_older_name_can_be_removed(searched: Registry) -> None:
    move_alias(searched, "0bcd", "prod")
    searched.record(AdapterAnnotated(adapter_id="0bcd-adapter", name="renamed"))
    assert searched.adapter("first-0@prod").name == "renamed"
    (gone,) = remove_alias(searched, "renamed", "prod")
    assert gone.name == "first-0" and searched.aliases() == []


def test_adapters_are_discarded_together_or_not_at_all(searched: Registry) -> None:
    move_alias(searched, "1bcd", "prod")
    with pytest.raises(EventError, match="first-1@prod"):
        discard(searched, ["0bcd", "1bcd"])
    assert {adapter.status for adapter in searched.adapters()} == {"available"}
    gone = discard(searched, ["0bcd", "1bcd", "first-1@prod"], reason="too large", force=True)
    assert [adapter.adapter_id for adapter in gone] == ["0bcd-adapter", "1bcd-adapter"]
    assert [adapter.status for adapter in searched.adapters(order_by="r")] == ["discarded"] * 2 + ["available"] * 2
    assert searched.aliases() == []
    assert searched.alias_history("first-1", "prod")[0].why == "too large"
    assert searched.events("0bcd-adapter")[0].why == "too large"
    with pytest.raises(EventError, match="discarded before"):
        discard(searched, ["2bcd", "0bcd"])
    assert searched.adapter("2bcd").status == "available"


def test_a_lineage_goes_from_the_base_to_what_was_exported(searched: Registry) -> None:
    id_, base = "1bcd-adapter", searched.adapter("1bcd").base_content_root
    searched.record(
        Evaluated(evaluation_id="e1", adapter_id=id_, base_content_root=base, dataset={}, metrics={"loss": 1.25}),
        Promoted(
            promotion_id="p0",
            adapter_id=id_,
            status="refused",
            recipe="full-precision",
            format="safetensors",
            output_path="/out",
            output_sha256="0" * 64,
            checks={},
            reason="too much was lost",
        ),
        Promoted(
            promotion_id="p1",
            adapter_id=id_,
            status="done",
            recipe="full-precision",
            format="safetensors",
            output_path="/out",
            output_sha256="1" * 64,
            checks={},
        ),
    )
    move_alias(searched, "0bcd", "prod")
    move_alias(searched, id_, "prod")
    lineage = searched.lineage("1bcd")
    assert [(step.what, step.id) for step in lineage.steps()] == [
        ("base", base),
        ("search", "search-1"),
        ("trial", "trial-1"),
        ("adapter", id_),
        ("evaluation", "e1"),
        ("promotion", "p0"),
        ("promotion", "p1"),
        ("export", "1" * 64),
        ("alias", "first-1@prod"),
    ]
    texts = [step.text for step in lineage.steps()]
    assert texts[4:8] == [
        "loss 1.2500",
        "refused, full-precision: too much was lost",
        "done, full-precision",
        "safetensors in /out",
    ]
    assert [event.kind for event in lineage.events] == [
        "alias_moved", "promoted", "promoted", "evaluated", "adapter_added"
    ]  # fmt: skip
    assert lineage.trial is not None and lineage.trial.trial_id == "trial-1"
    # An alias that went to another adapter of the same name belongs to the story of both.
    searched.record(AliasMoved(name="first-1", alias="prod", adapter_id="0bcd-adapter"))
    assert [move.adapter_id for move in searched.lineage("1bcd").alias_moves] == ["0bcd-adapter", id_]


def test_leaves_of_a_base_can_come_later(registry: Registry, base: BaseFingerprint) -> None:
    leaves = {"b": "2" * 64, "a": "1" * 64}
    assert registry.record(BaseSeen(base=base)) == 1
    assert registry.base_leaves(base.content_root) == {}
    seen = dataclasses.replace(base, sampled="s" * 64, quantization_sha256="q" * 64)
    again: Callable[[], BaseSeen] = lambda: BaseSeen(base=seen, leaves=leaves)  # noqa: E731
    assert registry.record(again()) == 1
    assert registry.record(again()) == 0
    found = registry.base(base.content_root)
    assert (found.sampled, found.quantization_sha256) == ("s" * 64, "q" * 64)
    assert list(registry.base_leaves(base.content_root).items()) == sorted(leaves.items())
    registry.record(BaseSeen(base=dataclasses.replace(base, identity="/a/copy", sampled="other"), leaves=leaves))
    assert registry.base(base.content_root).sampled == "s" * 64  # the first one stays
    assert [record.identity for record in registry.bases()] == ["org/tiny@0123"]


def promoted(
    registry: Registry, adapter_id: str, promotion_id: str, alias: str | None = "prod", *, earlier: int = 0
) -> None:
    """Records a promotion, and with it the move of its alias, dated some seconds before."""
    name, now = registry.adapter(adapter_id).name, datetime.now(UTC)
    registry.record(
        Promoted(
            at=now,
            promotion_id=promotion_id,
            adapter_id=adapter_id,
            status="done",
            recipe="full-precision",
            format="safetensors",
            output_path="/out",
            output_sha256="1" * 64,
            checks={},
            alias=f"{name}@{alias}" if alias else None,
        ),
        *(
            [AliasMoved(name=name, alias=alias, adapter_id=adapter_id, at=now - timedelta(seconds=earlier))]
            if alias
            else []
        ),
    )


@pytest.fixture
def one_name(searched: Registry) -> Registry:
    """A registry whose first adapters have one name between them, so that an alias can move."""
    searched.record(*(AdapterAnnotated(adapter_id=f"{n}bcd-adapter", name="model") for n in range(3)))
    return searched


def test_an_undone_promotion_gives_its_alias_back(one_name: Registry) -> None:
    promoted(one_name, "0bcd-adapter", "p0")
    promoted(one_name, "1bcd-adapter", "p1")
    promoted(one_name, "1bcd-adapter", "p2")  # the alias means it already
    undone, move = undo_promotion(one_name, "1bcd", why="slow")
    assert (undone.promotion_id, undone.status, move) == ("p2", "undone", None)
    assert one_name.adapter("model@prod").adapter_id == "1bcd-adapter"
    undone, move = undo_promotion(one_name, "1bcd", why="slow")
    assert (undone.promotion_id, undone.status) == ("p1", "undone") and move is not None
    assert (move.previous, move.adapter_id, move.why) == ("1bcd-adapter", "0bcd-adapter", "slow")
    assert one_name.adapter("model@prod").adapter_id == "0bcd-adapter"
    assert [event.why for event in one_name.events("1bcd-adapter") if event.kind == "promotion_undone"] == ["slow"] * 2
    with pytest.raises(EventError, match="is left to undo"):
        undo_promotion(one_name, "1bcd")
    undo_promotion(one_name, "0bcd")
    assert one_name.aliases() == []
    lineage = [step.text for step in one_name.lineage("0bcd").steps() if step.what in ("promotion", "export")]
    assert lineage == ["undone, full-precision", "safetensors in /out"]


def test_a_clock_that_was_set_back_does_not_keep_an_alias(one_name: Registry) -> None:
    promoted(one_name, "0bcd-adapter", "p0")
    promoted(one_name, "1bcd-adapter", "p1", earlier=60)
    assert undo_promotion(one_name, "1bcd")[1] is not None
    assert one_name.adapter("model@prod").adapter_id == "0bcd-adapter"


def test_a_promotion_without_an_alias_is_undone_too(one_name: Registry) -> None:
    promoted(one_name, "0bcd-adapter", "p0", alias=None)
    assert undo_promotion(one_name, "0bcd")[1] is None
    assert one_name.promotions("0bcd-adapter")[0].status == "undone"


def test_an_alias_that_was_moved_since_is_left_alone(one_name: Registry) -> None:
    promoted(one_name, "0bcd-adapter", "p0")
    move_alias(one_name, "2bcd", "prod")
    with pytest.raises(EventError, match=r"model@prod was moved after promotion p0, to 2bcd-adapter"):
        undo_promotion(one_name, "0bcd")
    assert [one.status for one in one_name.promotions("0bcd-adapter")] == ["done"]
    assert one_name.adapter("model@prod").adapter_id == "2bcd-adapter"


def test_an_alias_does_not_go_back_to_dropped_files(one_name: Registry) -> None:
    promoted(one_name, "0bcd-adapter", "p0")
    promoted(one_name, "1bcd-adapter", "p1")
    discard(one_name, ["0bcd"])
    with pytest.raises(EventError, match="0bcd-adapter before, which is discarded"):
        undo_promotion(one_name, "1bcd")
    assert one_name.adapter("model@prod").adapter_id == "1bcd-adapter"
