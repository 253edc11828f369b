from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteFallback
from tokenizers.models import BPE
from transformers import GenerationConfig, PreTrainedTokenizerFast

from rankloom.evaluation.base import BASE, SharedBase
from rankloom.evaluation.generation import Continuation, Sampling, end_ids, generate_greedily
from rankloom.tokens import encode_prompt
from rankloom_registry import Registry

PROMPTS = ("negate : the girl has loved the farm =", "negate : the doctor has loved the piano =", "the")


@pytest.fixture(scope="module")
def shared(trained: Any) -> SharedBase:
    shared = SharedBase(Registry.open(trained.registry), trained.adapters)
    shared.load()
    return shared


def ids(shared: SharedBase, prompt: Any) -> list[int]:
    return encode_prompt(prompt, shared.resident.tokenizer)


def said(shared: SharedBase, subject: str, prompt: str, sampling: Sampling) -> Continuation:
    answer = Continuation(ids(shared, prompt), shared.resident, sampling)
    with shared.active(subject) as model:
        while not answer.ended:
            answer.step(model)
    return answer


@pytest.mark.parametrize("who", [0, 1, BASE])
def test_a_token_a_step_is_what_generate_says(shared: SharedBase, who: Any) -> None:
    subject = who if who == BASE else shared.adapters[who].adapter_id
    with shared.active(subject) as model:
        expected = generate_greedily(model, shared.resident, [ids(shared, one) for one in PROMPTS], max_new_tokens=16)
    assert [said(shared, subject, one, Sampling(max_new_tokens=16)).text for one in PROMPTS] == expected


def test_prompts_of_different_lengths_share_a_batch(shared: SharedBase) -> None:
    with shared.active(shared.adapters[0].adapter_id) as model:
        prompts = [ids(shared, one) for one in PROMPTS]
        done: list[tuple[int, int]] = []
        alone, together = (
            generate_greedily(
                model,
                shared.resident,
                prompts,
                max_new_tokens=12,
                batch_size=size,
                on_batch=lambda *at: done.append(at),
            )
            for size in (1, 3)
        )
    assert alone == together
    assert done == [(1, 3), (2, 3), (3, 3), (3, 3)]


def test_models_that_take_turns_say_what_each_says_alone(shared: SharedBase, trained: Any) -> None:
    subjects = [BASE, *(adapter.adapter_id for adapter in shared.adapters)]
    sampling = Sampling(temperature=0.8, top_p=0.9, max_new_tokens=20, seed=3)
    answers = {one: Continuation(ids(shared, PROMPTS[0]), shared.resident, sampling) for one in subjects}
    while waiting := [one for one in subjects if not answers[one].ended]:
        for one in waiting:
            with shared.active(one) as model:
                answers[one].step(model)
    for number, adapter_id in enumerate(trained.adapters):
        alone = SharedBase(Registry.open(trained.registry), [adapter_id])
        alone.load()
        assert said(alone, adapter_id, PROMPTS[0], sampling).tokens == answers[adapter_id].tokens, number
        assert said(alone, BASE, PROMPTS[0], sampling).tokens == answers[BASE].tokens
    assert answers[trained.adapters[0]].tokens != answers[BASE].tokens


def test_a_seed_decides_and_a_cold_model_does_not_ask_it(shared: SharedBase) -> None:
    def of(**settings: Any) -> list[int]:
        return said(shared, BASE, PROMPTS[0], Sampling(max_new_tokens=10, **settings)).tokens

    assert of(temperature=1.0, seed=1) == of(temperature=1.0, seed=1) != of(temperature=1.0, seed=2)
    assert of(seed=1) == of(seed=2)
    # So few tokens are left that the likeliest is always drawn.
    assert of(temperature=1.0, top_p=1e-9, seed=5) == of()


def test_an_answer_ends_with_the_models_own_token(shared: SharedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    ends = end_ids(shared.model, shared.resident.tokenizer)
    assert ends == {shared.resident.tokenizer.eos_token_id}
    answer = Continuation([1, 2], shared.resident, Sampling(max_new_tokens=3))
    monkeypatch.setattr(answer, "_choose", lambda scores: next(iter(ends)))
    answer.step(shared.model)
    assert (answer.ended, answer.tokens, answer.text) == ("end", [], "")
    assert said(shared, BASE, PROMPTS[0], Sampling(max_new_tokens=3)).ended in ("length", "end")


def test_half_a_letter_is_not_shown(shared: SharedBase) -> None:
    answer = Continuation([1], shared.resident, Sampling())
    answer.tokens = shared.resident.tokenizer("the ü")["input_ids"]
    assert answer.text == "the ü"
    answer.tokens.pop()
    assert answer.text == "the "


def test_a_letter_of_which_several_bytes_are_there_is_not_shown(shared: SharedBase) -> None:
    """A tokenizer that falls back to bytes writes a sign of its own for each of them."""
    smile = [f"<0x{byte:02X}>" for byte in "🙂".encode()]
    model = BPE(vocab={token: place for place, token in enumerate(["a", *smile])}, merges=[], byte_fallback=True)
    bytewise = Tokenizer(model)
    bytewise.decoder = ByteFallback()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bytewise)
    answer = Continuation([0], replace(shared.resident, tokenizer=tokenizer), Sampling())
    shown = []
    for token in (0, 1, 2, 3, 4):
        answer.tokens.append(token)
        shown.append(answer.text)
    assert shown == ["a", "a", "a", "a", "a🙂"]


def test_the_bases_own_settings_for_generation_have_no_part(shared: SharedBase) -> None:
    base = shared.model.get_base_model()
    theirs = base.generation_config
    with shared.active(BASE) as model:
        before = generate_greedily(model, shared.resident, [ids(shared, PROMPTS[0])], max_new_tokens=16)
        told = ids(shared, before[0])
        base.generation_config = GenerationConfig(
            repetition_penalty=5.0,
            do_sample=True,
            temperature=3.0,
            suppress_tokens=told[:1],
            bad_words_ids=[told[-1:]],
            num_return_sequences=2,
            eos_token_id=theirs.eos_token_id,
        )
        try:
            torch.manual_seed(0)
            after = generate_greedily(model, shared.resident, [ids(shared, PROMPTS[0])], max_new_tokens=16)
            assert base.generation_config.repetition_penalty == 5.0
        finally:
            base.generation_config = theirs
    assert told and before == after


def test_the_base_is_untouched_in_the_end(trained: Any) -> None:
    shared = SharedBase(Registry.open(trained.registry), trained.adapters)
    shared.load()
    for subject in (BASE, *trained.adapters):
        said(shared, subject, PROMPTS[0], Sampling(max_new_tokens=2))
    shared.assert_unchanged()
