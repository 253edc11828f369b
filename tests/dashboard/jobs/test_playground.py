"""The playground's program, with a real model, and what the server keeps of the conversation."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from rankloom.evaluation.base import BASE, SharedBase
from rankloom.evaluation.generation import Continuation, Sampling
from rankloom.tokens import encode_prompt
from rankloom_dashboard.jobs.playground import Playground
from rankloom_registry import Registry

PROMPT = "negate : the girl has loved the farm ="
SETTINGS = {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 12, "seed": 4}


@pytest.fixture
def start(trained: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Playground]]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    made: list[Playground] = []

    def start(*refs: str, **order: object) -> Playground:
        wanted = {"registry": str(trained.registry), "refs": list(refs), **order}
        made.append(Playground("playground-1", "playground", wanted, ""))
        until(lambda: made[-1].adapters or made[-1].state != "running", 120)
        return made[-1]

    yield start
    for one in made:
        one.cancel()
        one.wait(60)


def until(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def ask(playground: Playground, prompt: str = PROMPT, system: str = "", **settings: object) -> dict[str, str]:
    playground.ask(prompt, system=system, settings=SETTINGS | settings)
    until(lambda: playground.ready)
    return {subject: answer.text for subject, answer in playground.turns[-1].answers.items()}


def alone(trained: Any, subject: str, messages: str | list[dict[str, str]], adapter: str | None = None) -> str:
    """What a model says with only that adapter loaded."""
    shared = SharedBase(Registry.open(trained.registry), [adapter or subject])
    shared.load()
    prompt = encode_prompt(messages, shared.resident.tokenizer)
    answer = Continuation(prompt, shared.resident, Sampling(**SETTINGS))
    with shared.active(subject) as model:
        while not answer.ended:
            answer.step(model)
    return answer.text


def test_each_column_says_what_its_model_says_alone(trained: Any, start: Callable[..., Playground]) -> None:
    good, slow = trained.adapters
    playground = start(good, slow)
    assert playground.adapters == (good, slow) and playground.chat
    first = ask(playground, system="be brief")
    assert set(first) == {BASE, good, slow}
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": PROMPT}]
    assert first[good] == alone(trained, good, messages)
    assert first[BASE] == alone(trained, BASE, messages, good)
    # The second turn goes on from each model's own first answer.
    second = ask(playground, "the doctor", system="be brief")
    said = [*messages, {"role": "assistant", "content": first[good]}, {"role": "user", "content": "the doctor"}]
    assert second[good] == alone(trained, good, said)
    assert all(0 < answer.tokens <= 12 for answer in playground.turns[0].answers.values())
    # The same seed and settings again.
    playground.clear()
    assert playground.turns == []
    assert ask(playground, system="be brief") == first
    playground.clear()
    assert ask(playground, system="be brief", seed=5) != first


def test_adapters_are_swapped_on_the_base_that_is_there(trained: Any, start: Callable[..., Playground]) -> None:
    good, slow = trained.adapters
    playground = start(good)
    first = ask(playground)
    playground.load([slow])
    assert playground.busy and not playground.ready and playground.turns == []
    until(lambda: playground.ready)
    assert playground.adapters == (slow,)
    swapped = ask(playground)
    assert swapped[BASE] == first[BASE] and swapped[slow] == alone(trained, slow, [{"role": "user", "content": PROMPT}])
    playground.load(["no-such-adapter"])
    until(lambda: playground.ready)
    assert playground.adapters == (slow,) and "no-such-adapter" in playground.problem
    playground.load([good])
    until(lambda: playground.ready)
    assert ask(playground) == first and playground.problem == ""


def test_a_conversation_can_be_plain_text(trained: Any, start: Callable[..., Playground]) -> None:
    good = trained.adapters[0]
    playground = start(good)
    playground.ask(PROMPT, system="ignored", settings=SETTINGS, chat=False)
    until(lambda: playground.ready)
    first = playground.turns[0].answers[good].text
    assert first == alone(trained, good, PROMPT)
    playground.ask(" so", system="", settings=SETTINGS, chat=False)
    until(lambda: playground.ready)
    assert playground.turns[1].answers[good].text == alone(trained, good, f"{PROMPT}{first} so")


def test_a_model_can_be_stopped_and_asked_again(trained: Any, start: Callable[..., Playground]) -> None:
    playground = start(trained.adapters[0])
    playground.ask(PROMPT, system="", settings=SETTINGS | {"max_new_tokens": 1500, "temperature": 1.0})
    until(lambda: playground.turns[0].answers[BASE].tokens > 3)
    assert playground.answering and not playground.ready
    playground.ask("not now", system="", settings=SETTINGS)
    assert len(playground.turns) == 1
    playground.stop()
    until(lambda: playground.ready)
    answers = playground.turns[0].answers.values()
    assert "stopped" in {answer.ended for answer in answers} and max(answer.tokens for answer in answers) < 1500
    # What was asked before the conversation was forgotten does not come into the next one.
    playground.ask(PROMPT, system="", settings=SETTINGS | {"max_new_tokens": 1500, "temperature": 1.0})
    playground.clear()
    assert len(ask(playground)[BASE]) < 200 and len(playground.turns) == 1


def test_a_conversation_that_is_too_long_is_a_message(trained: Any, start: Callable[..., Playground]) -> None:
    playground = start(trained.adapters[0])
    playground.ask("girl " * 5000, system="", settings=SETTINGS)
    until(lambda: playground.problem)
    assert "looks at 2048 at most: begin a new one" in playground.problem
    assert playground.turns == [] and playground.ready
    assert ask(playground)[BASE]
    assert playground.problem == ""


def test_it_lets_go_of_the_model_when_nobody_asks(trained: Any, start: Callable[..., Playground]) -> None:
    playground = start(trained.adapters[0], idle_s=0.5)
    assert playground.wait(60) == "done" and playground.result == {"ended": "idle"}
    playground.ask(PROMPT, system="", settings=SETTINGS)
    assert playground.turns == [] and not playground.ready


def test_another_base_is_not_loaded(world: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    """Proven by content before it is loaded."""
    import shutil

    from safetensors.torch import load_file, save_file

    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    weights = load_file(world.base / "model.safetensors")
    kept = shutil.copy2(world.base / "model.safetensors", tmp_path / "kept")
    weights["model.norm.weight"][0] += 1
    try:
        save_file(weights, world.base / "model.safetensors", metadata={"format": "pt"})
        playground = Playground("1", "playground", {"registry": str(world.registry), "refs": world.adapters[:1]}, "")
        assert playground.wait(120) == "failed"
    finally:
        shutil.copy2(kept, world.base / "model.safetensors")
    assert "give the folder of the right base" in playground.error and playground.adapters == ()


def test_an_adapter_that_is_not_there(start: Callable[..., Playground]) -> None:
    playground = start("no-such-adapter")
    assert playground.wait(60) == "failed" and "no-such-adapter" in playground.error


def test_it_is_ready_when_the_last_adapters_that_were_asked_for_are_there(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_worker.py").write_text("import sys; sys.stdin.read()")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *filter(None, sys.path)]))
    monkeypatch.setattr("rankloom_dashboard.jobs.job.WORKER", "slow_worker")
    playground = Playground("playground-1", "playground", {}, "")

    def there(adapter: str) -> None:
        playground.take({"told": {"ready": {"subjects": [adapter], "chat": True}}})

    assert not playground.ready
    there("first")
    assert playground.ready
    playground.load(["second"])
    playground.load(["third"])
    there("second")
    assert playground.busy and not playground.ready  # what is asked now would be answered by the third
    there("third")
    assert playground.ready and not playground.busy
    playground.cancel()
    assert playground.wait(60) == "cancelled"
