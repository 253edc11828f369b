"""How many trials Tune is given, while somebody adds some."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import optuna
import pytest
from ray.tune.experiment import Experiment

from rankloom.cluster.proposing import Proposals, Room
from rankloom.cluster.searcher import OptunaSearcher
from rankloom.errors import SearchError


def proposals(folder: Path, room: Room, *, at_once: int = 9, ranks: list[int] | None = None) -> Proposals:
    """What Tune asks; of a grid where `ranks` are given."""

    def space(trial: optuna.Trial) -> None:
        trial.suggest_categorical("r", ranks or [4, 8])

    made = Proposals(
        OptunaSearcher(
            space=space,
            metric="eval_loss",
            mode="min",
            points=[],
            sampler=optuna.samplers.GridSampler({"r": ranks}, seed=0) if ranks else optuna.samplers.RandomSampler(0),
            journal=folder / "study.jsonl",
        ),
        room,
        at_once=at_once,
    )
    made.add_configurations([Experiment("steered", lambda config: None, num_samples=room.total)])
    return made


def drawn(made: Proposals) -> list[Any]:
    """The trials that Tune is given until there is none for now."""
    found = []
    while (trial := made.next_trial()) is not None:
        found.append(trial)
    return found


def test_trials_are_added_while_others_are_in_flight_or_when_all_were_proposed(tmp_path: Path) -> None:
    room, kept = Room(2), list[int]()
    made = proposals(tmp_path, room)
    assert room.extend(1, kept.append) == 3  # before the first
    assert len(drawn(made)) == 3 and made.is_finished()
    assert room.extend(2, kept.append) == 5
    assert not made.is_finished() and made.total_samples == 5
    assert [trial.config["number"] for trial in drawn(made)] == [3, 4]
    assert made.is_finished() and kept == [3, 5]


def test_no_more_are_in_flight_than_may_be(tmp_path: Path) -> None:
    room = Room(9)
    made = proposals(tmp_path, room, at_once=2)
    first, _ = drawn(made)
    made.on_trial_complete(first.trial_id, {"eval_loss": 1.0, "steps": 1, "outcome": "completed"})
    assert len(drawn(made)) == 1 and not made.is_finished()


def test_what_cannot_be_kept_is_not_added(tmp_path: Path) -> None:
    def full(total: int) -> None:
        raise OSError("the disk is full")

    room = Room(2)
    with pytest.raises(OSError, match="full"):
        room.extend(1, full)
    assert room.total == 2 and room.extend(1, lambda total: None) == 3


def test_nothing_is_added_once_the_last_trial_has_ended(tmp_path: Path) -> None:
    room, kept = Room(2), list[int]()
    room.close_if(lambda: False)
    assert room.extend(1, kept.append) == 3
    room.close_if(lambda: True)
    room.close_if(lambda: False)  # it does not open again
    with pytest.raises(SearchError, match="every trial of this search has ended"):
        room.extend(1, kept.append)
    assert room.total == 3 and kept == [3]


def test_a_grid_that_was_drawn_whole_has_nothing_left(tmp_path: Path) -> None:
    room = Room(2)
    made = proposals(tmp_path, room, ranks=[2, 4, 8])
    assert len(drawn(made)) == 2
    assert room.extend(7, lambda total: None) == 9
    ranks = {trial.config["params"]["r"] for trial in drawn(made)}
    assert len(ranks) == 1 and made.is_finished()  # and no point that is in training a second time
    with pytest.raises(SearchError, match="the sampler has nothing left to propose"):
        room.extend(1, lambda total: None)


def test_what_tune_pickles_can_be_pickled() -> None:
    assert pickle.loads(pickle.dumps(Room(7))).total == 7
