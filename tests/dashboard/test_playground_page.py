"""The playground's page, with a real program that holds a real model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from rankloom_dashboard import access
from rankloom_dashboard.access import Visitor
from rankloom_dashboard.jobs.playground import Answer, Playground, Turn
from rankloom_dashboard.launch import CHANGES_VARIABLE

PLAYGROUND = "views/playground.py"
pytestmark = pytest.mark.usefixtures("own_jobs", "changing")
Press = Callable[[AppTest, str], AppTest]
PROMPT = "negate : the girl has loved the farm = <b>**now**</b>"


def texts(app: AppTest) -> list[str]:
    return [element.value for element in app.text]


def until(what: Callable[[], object], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_conversation_with_base_and_adapters(run_page: Callable[..., AppTest], trained: Any, press: Press) -> None:
    good, slow = trained.adapters
    app = run_page(trained.registry, PLAYGROUND, ids=f"{good},{slow}", tokens="12", temperature="0.8", seed="3")
    assert not app.exception and not app.chat_input
    press(app, "Load the model")
    playground = app.session_state["playground"]
    until(lambda: playground.ready or playground.state != "running")
    assert playground.state == "running", playground.error
    app.run()
    app.chat_input[0].set_value(PROMPT).run()
    assert not app.exception
    until(lambda: playground.ready)
    app.run()
    (turn,) = playground.turns
    assert len({answer.tokens for answer in turn.answers.values()} - {0}) >= 1
    said = [answer.text or " " for answer in turn.answers.values()]
    assert [text for text in texts(app) if text in said] == said
    assert PROMPT in texts(app)
    assert not any("now" in element.value for element in app.markdown)
    app.chat_input[0].set_value("the doctor").run()
    until(lambda: playground.ready)
    assert len(playground.turns) == 2
    app.run()
    app.multiselect[0].set_value([slow]).run()
    press(app, "Swap adapters")
    until(lambda: playground.ready)
    app.run()
    assert playground.adapters == (slow,) and playground.turns == [] and not app.chat_input[0].disabled
    # Nothing of it is in the address, nor on anybody else's page.
    assert "doctor" not in str(dict(app.query_params))
    other = run_page(
        trained.registry, PLAYGROUND, **{name: "".join(app.query_params[name]) for name in ("ids", "seed")}
    )
    assert not other.exception and PROMPT not in texts(other) and not other.chat_input
    # Whoever loads again lets go of what they had; here nobody logs in, so all are one.
    press(other, "Load the model")
    assert playground.wait(60) == "cancelled"
    assert other.session_state["playground"].turns == []
    app.run()
    assert not app.exception and not app.chat_input
    press(other, "Cancel")
    assert other.session_state["playground"].wait(60) == "cancelled"


def test_somebody_elses_model_is_left_alone(
    run_page: Callable[..., AppTest], trained: Any, press: Press, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "visitor", lambda: Visitor(who="ada@example.org", role="editor"))
    ada = run_page(trained.registry, PLAYGROUND, ids=trained.adapters[0])
    press(ada, "Load the model")
    monkeypatch.setattr(access, "visitor", lambda: Visitor(who="bob@example.org", role="editor"))
    bob = run_page(trained.registry, PLAYGROUND, ids=trained.adapters[0])
    press(bob, "Load the model")
    assert len(bob.error) == 1 and any("somebody else uses" in code.value for code in bob.code)
    assert ada.session_state["playground"].state == "running"
    assert "playground" not in bob.session_state


def test_who_may_only_look_loads_nothing(
    run_page: Callable[..., AppTest], trained: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CHANGES_VARIABLE, "0")
    app = run_page(trained.registry, PLAYGROUND, ids=trained.adapters[0])
    assert not app.exception and not app.button and not app.chat_input
    assert any("--allow-changes" in element.value for element in app.info)


def test_a_model_that_cannot_be_loaded_is_a_message(
    run_page: Callable[..., AppTest], trained: Any, press: Press
) -> None:
    app = run_page(trained.registry, PLAYGROUND, ids=trained.adapters[0], at="/no/such/base")
    press(app, "Load the model")
    playground = app.session_state["playground"]
    assert playground.wait(120) == "failed"
    app.run()
    assert len(app.error) == 1 and any("/no/such/base" in code.value for code in app.code)
    assert any(button.label == "Load the model" for button in app.button)


def test_what_a_model_wrote_stays_text_and_is_cut(
    run_page: Callable[..., AppTest],
    trained: Any,
    press: Press,
    hostile_text: str,
    read_as_markdown: Callable[[AppTest], str],
) -> None:
    """A conversation as another model might make it."""
    evil = hostile_text + "\x00" + "x" * 1_000_000
    app = run_page(trained.registry, PLAYGROUND, ids=trained.adapters[0])
    press(app, "Load the model")
    playground: Playground = app.session_state["playground"]
    until(lambda: playground.ready or playground.state != "running")
    answers = {"base": Answer(text=evil, tokens=1, ended="end"), trained.adapters[0]: Answer(text="", ended="stopped")}
    playground.turns = [Turn(number=1, prompt=evil, answers=answers)]
    playground.problem = evil
    app.run()
    assert not app.exception
    assert sum("evil.example" in text for text in texts(app)) == 2
    assert max(map(len, texts(app))) < 21_000
    assert "evil" not in read_as_markdown(app)
