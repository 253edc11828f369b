"""A request is taken once or not at all, and whoever asks is told what became of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

import rankloom
from rankloom.control import ask
from rankloom.errors import SearchError
from rankloom.mailbox import Mailbox, Request
from rankloom.runs import Run, open_run

Driven = Callable[..., AbstractContextManager[list[Request]]]


@pytest.fixture
def run(make_run: Callable[..., Run], tmp_path: Path) -> Run:
    return make_run(tmp_path / "one")


@pytest.fixture
def mailbox(tmp_path: Path) -> Mailbox:
    made = Mailbox(tmp_path / "requests")
    made.open()
    return made


def stop(trial: int = 0, **more: Any) -> Request:
    return Request(kind="stop_trial", who="ann", trial=trial, **more)


def test_requests_are_taken_once_in_the_order_in_which_they_were_left(mailbox: Mailbox) -> None:
    asked = [stop(7, why="«ß»\n"), stop(3), Request(kind="stop_search", who=""), stop(9)]
    for request in asked:
        mailbox.post(request)
        time.sleep(0.005)  # a file's time has no more than some milliseconds
    assert mailbox.take() == asked
    assert mailbox.take() == []
    mailbox.answer(asked[0], num_samples=4)
    assert mailbox.answer_to(asked[1]) is None
    assert mailbox.answer_to(asked[0]) == {"refusal": "", "num_samples": 4}
    assert mailbox.answer_to(asked[0]) is None
    assert [mailbox.holds(request) for request in asked] == [False, True, True, True]


def test_a_request_is_withdrawn_or_taken_never_both(mailbox: Mailbox) -> None:
    early, late = stop(1), stop(2)
    mailbox.post(early)
    assert mailbox.withdraw(early) and not mailbox.holds(early)
    mailbox.post(late)
    assert mailbox.take() == [late]
    assert not mailbox.withdraw(late) and mailbox.holds(late)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"kind": "stop_search"}',
        '{"kind": "stop_search", "who": 7}',
        '{"kind": "delete_search", "who": "ann"}',
        '{"kind": "stop_trial", "who": "ann"}',
        '{"kind": "stop_trial", "who": "ann", "trial": true}',
        '{"kind": "stop_trial", "who": "ann", "trial": -1}',
        '{"kind": "add_trials", "who": "ann", "count": 0}',
        '{"kind": "add_trials", "who": "ann", "count": "9"}',
        '{"kind": "stop_search", "who": "ann", "shell": "rm"}',
        "\x00\xff",
    ],
)
def test_what_is_no_request_is_answered_and_does_no_harm(mailbox: Mailbox, tmp_path: Path, text: str) -> None:
    (tmp_path / "requests" / "odd.json").write_text(text, encoding="latin-1")
    mailbox.post(good := stop())
    assert mailbox.take() == [good]
    assert "no request" in json.loads((tmp_path / "requests" / "odd.answer").read_bytes())["refusal"]
    assert mailbox.take() == []


def test_whatever_lies_in_a_mailbox_the_search_goes_on(mailbox: Mailbox, tmp_path: Path) -> None:
    (tmp_path / "requests" / "folder.json").mkdir()
    mailbox.post(good := stop())
    assert mailbox.take() == [good]
    mailbox.close()
    mailbox.answer(good)  # nobody can hear it
    assert mailbox.take() == [] and mailbox.answer_to(good) is None
    with pytest.raises(SearchError, match="cannot leave a request in"):
        mailbox.post(good)


def test_a_driver_answers(run: Run, driven: Driven) -> None:
    answers = {1: {"num_samples": 9}, 2: {"refusal": "trial 2 is not in training"}}
    with driven(run, lambda request: answers[request.trial]):
        assert ask(run, stop(1))["num_samples"] == 9
        with pytest.raises(SearchError, match="trial 2 is not in training"):
            ask(run, stop(2))
        assert list(run.requests.iterdir()) == []
    assert not run.requests.exists()


def test_a_search_that_does_not_run_is_asked_nothing(run: Run) -> None:
    for _ in range(2):
        with pytest.raises(SearchError, match="'one' does not run now; go on with it by --resume"):
            ask(run, stop())
        with run.alone():  # and ends
            pass
    assert not run.requests.exists()


def test_a_driver_that_does_not_listen_is_not_told(run: Run) -> None:
    with run.alone():
        with pytest.raises(SearchError, match="did not listen for 0.1 s, and was not told; try again"):
            ask(run, stop(), wait_s=0.1)
        assert Mailbox(run.requests).take() == []


def test_a_driver_that_took_it_and_says_nothing_is_not_waited_for_for_ever(run: Run, driven: Driven) -> None:
    with driven(run, lambda request: None), pytest.raises(SearchError, match="was told, and did not say"):
        ask(run, stop(), wait_s=0.1)


def test_a_driver_that_is_killed_takes_its_requests_with_it(run: Run, tmp_path: Path) -> None:
    program = f"""
import os, signal
from rankloom.mailbox import Mailbox
from rankloom.runs import open_run
run = open_run({str(run.folder)!r}, {str(tmp_path)!r})
with run.alone():
    print("ready", flush=True)
    while not Mailbox(run.requests).take():
        pass
    os.kill(os.getpid(), signal.SIGKILL)
"""
    roots = [str(Path(rankloom.__file__).parents[1]), os.environ.get("PYTHONPATH", ""), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, roots))}
    driver = subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None and driver.stdout.readline() == "ready\n"
    assert run.is_running()
    with pytest.raises(SearchError, match="'one' ended before it could do that"):
        ask(run, stop())
    driver.wait()
    assert not run.is_running() and list(run.requests.glob("*.taken"))
    with run.alone():
        assert list(run.requests.iterdir()) == []


def test_whoever_looks_whether_a_search_runs_keeps_no_driver_out(run: Run) -> None:
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            run.is_running()

    lookers = [threading.Thread(target=look) for _ in range(2)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(20):
            with run.alone():
                assert run.is_running()
    finally:
        over.set()
        for looker in lookers:
            looker.join()


def test_more_trials_are_in_the_record_that_a_resumed_search_reads(run: Run, tmp_path: Path) -> None:
    run.extend(99)
    again = open_run("one", tmp_path)
    assert again.search_config().num_samples == 99
    assert again.config == run.config | {"num_samples": 99}


def test_who_asks_while_a_search_begins_or_ends_is_told_to_try_again(tmp_path: Path) -> None:
    with pytest.raises(SearchError, match=r"its search begins or ends at this moment: try again$"):
        Mailbox(tmp_path / "requests").post(stop())
    (tmp_path / "requests").touch()
    with pytest.raises(SearchError, match="Not a directory; ask as the user who runs the search$"):
        Mailbox(tmp_path / "requests").post(stop())


def test_an_answer_is_read_before_the_mailbox_goes(mailbox: Mailbox, tmp_path: Path) -> None:
    mailbox.post(request := stop())
    mailbox.take()
    mailbox.answer(request, num_samples=9)
    closing = threading.Thread(target=mailbox.close, kwargs={"wait_s": 60.0})
    closing.start()
    closing.join(0.2)
    assert mailbox.answer_to(request) == {"refusal": "", "num_samples": 9}
    closing.join(10)
    assert not closing.is_alive() and not (tmp_path / "requests").exists()


def test_an_answer_that_nobody_reads_keeps_no_driver(mailbox: Mailbox, tmp_path: Path) -> None:
    mailbox.post(request := stop())
    mailbox.take()
    mailbox.answer(request)
    mailbox.close(wait_s=0.05)
    assert not (tmp_path / "requests").exists()
