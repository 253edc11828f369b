"""The playground: one prompt for the base and up to three adapters side by side, as they write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import streamlit as st

from rankloom.evaluation.base import BASE
from rankloom_dashboard import access, changes, elements, formats
from rankloom_dashboard.adapters import choosing
from rankloom_dashboard.adapters.actions import MOST_PLAYED
from rankloom_dashboard.errors import BusyError, ForbiddenError
from rankloom_dashboard.evaluations import reads
from rankloom_dashboard.jobs.playground import Answer, Playground, Turn
from rankloom_registry import Adapter

_EVERY_S = 0.3
_MOST_ASKED = 20_000  # characters
_MOST_SHOWN = 20_000
_KEY = "playground"  # of the visitor's own program: no address leads to it, and no other visitor
_ENDINGS = {"length": "cut at the most new tokens", "stopped": "stopped"}


def render() -> None:
    """Shows the page."""
    st.title("Playground")
    if not reads.available_adapters():
        elements.nothing_yet("The registry holds no adapter with files. A search makes them:", "rankloom quickstart")
        return
    adapters = choosing.choose_adapters(
        MOST_PLAYED, explanation="Adapters of one base. They take turns on it, and it answers beside them."
    )
    if not access.may("editor"):
        st.info(
            "The playground loads a model on the machine that serves this page, which takes the role editor and a "
            "dashboard that was started with --allow-changes."
        )
        return
    playground = st.session_state.get(_KEY)
    if playground is None or playground.state != "running":
        _idle(playground, adapters)
        return
    settings = _settings(playground)
    if not playground.adapters:
        st.fragment(_loading, run_every=_EVERY_S)(playground)
        return
    busy = playground.busy  # before what is said of it: whatever ends it after this shows the whole page again
    _hold(playground, adapters)
    names = _names(adapters, playground.adapters)
    st.fragment(_conversation, run_every=_EVERY_S if busy else None)(playground, names, busy=busy)
    prompt = st.chat_input("Say something to all of them", max_chars=_MOST_ASKED, disabled=not playground.ready)
    if prompt:
        playground.ask(prompt, **settings)
        st.rerun()


def _idle(playground: Playground | None, adapters: Sequence[Adapter]) -> None:
    if playground is not None and playground.state == "failed":
        elements.problem("The model is no longer there.", playground.error)
    elif playground is not None and playground.state == "done":
        st.info("Nobody asked anything for some time, so the model was let go.")
    elif playground is not None:
        st.info("The model was let go.")
    st.caption(
        "The base is proven by its fingerprint and loaded once, quantized as in training. It stays in memory until "
        "you let go of it, or for ten minutes after the last prompt."
    )
    base = st.text_input(
        "Base",
        key="at",
        bind="query-params",
        placeholder="where it was when they were trained",
        help="Where the base is now, if it moved: a folder or a .gguf file on the machine that serves this page.",
    )
    if st.button("Load the model", type="primary", disabled=not adapters):
        refs = tuple(adapter.adapter_id for adapter in adapters)
        try:
            st.session_state[_KEY] = changes.start_playground(refs, base=base or None)
        except (BusyError, ForbiddenError) as error:
            elements.problem("It was not loaded.", str(error))
        else:
            st.rerun()
    if not adapters:
        st.caption("Choose one to three adapters above.")


def _loading(playground: Playground) -> None:
    if playground.adapters or playground.state != "running":
        st.rerun()
    stage, done, total = playground.progress or ("start", 0, 2)
    st.progress(done / total, text="Proving and loading the base")
    st.text(stage)
    # By a callback: a click that comes while a fragment refreshes itself would be lost otherwise.
    st.button("Cancel", on_click=elements.attempt, args=(changes.cancel_job, playground.job_id))


def _hold(playground: Playground, adapters: Sequence[Adapter]) -> None:
    """What can be done with the program: swap its adapters, forget, let go."""
    chosen = tuple(adapter.adapter_id for adapter in adapters)
    with st.container(horizontal=True, vertical_alignment="center"):
        if chosen and chosen != playground.adapters:
            st.button(
                "Swap adapters",
                type="primary",
                on_click=playground.load,
                args=(chosen,),
                help="The base stays in memory; the conversation begins anew.",
            )
        st.button("New conversation", on_click=playground.clear, disabled=not playground.turns)
        st.button("Let go of the model", help="Frees the memory that it takes.", on_click=_let_go, args=(playground,))
    if not playground.chat:
        st.info("This model has no chat template: it goes on from the plain text of the conversation.")
    if playground.problem:
        elements.problem("That was not done.", playground.problem)


def _let_go(playground: Playground) -> None:
    elements.attempt(changes.cancel_job, playground.job_id)
    st.session_state.pop(_KEY, None)  # it may take its time to end


def _settings(playground: Playground) -> dict[str, Any]:
    with st.expander("Settings, the same for each model", icon=":material/tune:"):
        with st.grid(min_column_width=180):
            temperature = st.slider(
                "Temperature",
                0.0,
                2.0,
                0.0,
                0.05,
                key="temperature",
                bind="query-params",
                help="0 takes the likeliest token each time.",
            )
            top_p = st.slider(
                "Top p",
                0.05,
                1.0,
                1.0,
                0.05,
                key="top_p",
                bind="query-params",
                help="Draws from the likeliest tokens that together have this probability.",
            )
            tokens = st.number_input("New tokens at most", 1, 4096, 256, key="tokens", bind="query-params")
            seed = st.number_input("Seed", 0, 2**31 - 1, 0, key="seed", bind="query-params")
        chat = st.toggle(
            "Chat template",
            value=True,
            key="chat",
            bind="query-params",
            disabled=not playground.chat,
            help="Formats the conversation as the model was taught to chat. Off, the models go on from its plain text: "
            "for adapters that were trained on plain prompts.",
        )
        system = st.text_input(
            "System prompt",
            max_chars=2000,
            key="system",
            bind="query-params",
            disabled=not playground.chat or not chat,
            help="Stands in the address of this page, as the other settings do; what you say does not.",
        )
    sampling = {"temperature": temperature, "top_p": top_p, "max_new_tokens": tokens, "seed": seed}
    return {"system": system or "", "chat": chat, "settings": sampling}


def _names(adapters: Sequence[Adapter], loaded: Sequence[str]) -> dict[str, str]:
    known = {adapter.adapter_id: adapter.name for adapter in adapters}
    names = [known.get(adapter_id, adapter_id) for adapter_id in loaded]
    return {BASE: BASE} | {
        adapter_id: formats.cut(name, 60) if names.count(name) == 1 else f"{formats.cut(name, 40)} {adapter_id}"
        for adapter_id, name in zip(loaded, names, strict=True)
    }


def _conversation(playground: Playground, names: dict[str, str], *, busy: bool) -> None:
    if busy and not playground.busy:
        st.rerun()  # the whole page, which then no longer refreshes itself
    for turn in playground.turns:
        _turn(turn, names)
    if not playground.turns and not playground.busy:
        st.caption("Nothing has been said yet.")
    if playground.answering:
        st.button("Stop", icon=":material/stop:", on_click=playground.stop)
    elif playground.busy:
        st.caption("The adapters are being swapped.")


def _turn(turn: Turn, names: dict[str, str]) -> None:
    with st.container(border=True):
        st.caption("you")
        st.text(formats.cut(turn.prompt, _MOST_SHOWN))
    with st.grid(len(turn.answers), min_column_width=230):
        for subject, answer in turn.answers.items():
            with st.container(border=True, height="stretch"):
                _answer(names.get(subject, subject), answer)


def _answer(name: str, answer: Answer) -> None:
    st.text(name)
    st.text(formats.cut(answer.text, _MOST_SHOWN) or " ")
    figures = [formats.counted(answer.tokens, "token", "tokens")]
    if answer.seconds and answer.tokens:
        figures.append(f"{answer.tokens / answer.seconds:.1f} a second")
    if answer.ended == "end" and not answer.tokens:
        figures = ["said nothing"]
    figures.append(_ENDINGS.get(answer.ended, "") if answer.ended else "writing…")
    st.caption(" · ".join(filter(None, figures)))


render()
