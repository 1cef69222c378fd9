"""What may be said where tools may be called, and how it is taken apart: each held against the other."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jsonschema
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from draft_service.api.transcript import Delta, Transcript
from draft_service.generation import TokenEvent
from draft_service.reasoning.reasoner import Reasoner
from draft_service.reasoning.reasoning_format import find_format
from draft_service.text import Tokenizer
from draft_service.tools.calling import ToolCalling
from draft_service.tools.grammar import Calls, Form, Function, Offer
from pipedec.errors import RequestError
from pipedec.model.grammar import Grammars, Matcher
from tests.allowed import is_allowed
from tests.tools.templates import FAMILIES

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city"],
    "additionalProperties": False,
}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}
FUNCTIONS = {"weather": CITY, "weather.now": NOTHING, "time": NOTHING}
OFFER = Offer((), tuple(Function(name, schema) for name, schema in FUNCTIONS.items()), Calls.POSSIBLE)
REQUIRED, ONE = replace(OFFER, calls=Calls.REQUIRED), replace(OFFER, several=False)
NOTE = {
    "type": "object",
    "properties": {"note": {"type": "string"}},
    "required": ["note"],
    "additionalProperties": False,
}
FORMED = replace(OFFER, form=Form(NOTE, strict=True))
VOCABULARY = 270

Called = list[tuple[str, Any]]


class Model(NamedTuple):
    """One that calls tools in the way of its family."""

    tokenizer: Tokenizer
    calling: ToolCalling
    reasoner: Reasoner
    grammars: Grammars

    def matcher(self, offer: Offer, prompt: Sequence[int] = ()) -> Matcher:
        is_free = offer.calls is not Calls.REQUIRED and offer.form is None
        grammar = self.reasoner.grammar(self.calling.grammar(offer), prompt, is_free=is_free)
        return self.grammars.matcher(grammar, self.tokenizer.end_tokens)

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer.backend.encode(text, add_special_tokens=False).ids

    def written(self, said: str, calls: Called) -> str:
        """An answer, as the model writes it."""
        form = self.calling.format
        each = [name + form.between + json.dumps(arguments, ensure_ascii=False) for name, arguments in calls]
        return said + (form.opening + (form.following or "").join(each) + form.closing if calls else "")


@cache
def model(family: str) -> Model:
    tokenizer = FAMILIES[family].tokenizer()
    format = find_format(tokenizer)
    calling = ToolCalling(tokenizer, format)
    reasoner = Reasoner(tokenizer, format, calling.marks)
    return Model(tokenizer, calling, reasoner, Grammars(tokenizer.backend, VOCABULARY))


def taken_apart(it: Model, tokens: Sequence[int], offer: Offer = OFFER) -> tuple[str, Called, Delta]:
    """What is said, what is called, and the answer as one delta."""
    (end,) = it.tokenizer.end_tokens
    transcript = Transcript(0, it.tokenizer, (), scanner=it.calling.scanner(offer))
    events = [TokenEvent(token) for token in tokens]
    events.append(TokenEvent(end, finish="stop"))
    whole = Delta.joined([transcript.push(event) for event in events])
    calls: dict[int, list[str]] = {}
    for delta in whole.calls:
        told = calls.setdefault(delta.index, ["", ""])
        told[0] += delta.name
        told[1] += delta.arguments
        assert bool(delta.id) == bool(delta.name)
    return whole.text, [(name, json.loads(arguments)) for name, arguments in calls.values()], whole


TEXTS = st.characters(exclude_categories=["Cc", "Cs"], include_characters="\n\t")
DAYS = st.one_of(st.just({}), st.integers(1, 9).map(lambda days: {"days": days}))
ARGUMENTS = st.one_of(
    st.tuples(
        st.just("weather"),
        st.builds(lambda city, days: {"city": city} | days, st.text(TEXTS, max_size=12), DAYS),
    ),
    st.tuples(st.sampled_from(["weather.now", "time"]), st.just({})),
)
SAID = st.one_of(st.just(""), st.text(TEXTS, min_size=1, max_size=20).map(lambda text: f"Well, {text}."))


@pytest.mark.parametrize("family", FAMILIES)
@given(said=SAID, calls=st.lists(ARGUMENTS, max_size=3))
@settings(max_examples=40, deadline=None)
def test_what_a_model_writes_is_allowed_and_taken_apart(family: str, said: str, calls: Called) -> None:
    it = model(family)
    (end,) = it.tokenizer.end_tokens
    if not it.calling.format.after_text and calls:
        said = ""
    calls = calls[:1] if it.calling.format.following is None else calls
    tokens = it.tokens(it.written(said, calls))
    assert is_allowed(it.matcher(OFFER), tokens, end)
    text, called, whole = taken_apart(it, tokens)
    assert (text, called) == (said, calls)
    assert whole.finish == ("tool_calls" if calls else "stop")
    assert is_allowed(it.matcher(REQUIRED), tokens, end) == (bool(calls) and not said)
    assert is_allowed(it.matcher(ONE), tokens, end) == (len(calls) <= 1)


def chopped(it: Model, text: str, at: int, token: int) -> list[int]:
    """Its tokens, with this one in the middle, as the grammar would not see that they belong together."""
    bytes_ = text.encode()
    return [*it.tokens(bytes_[:at].decode()), token, *it.tokens(bytes_[at:].decode())]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("at", [2, 5, 12])
def test_a_call_does_not_begin_on_both_sides_of_a_hidden_token(family: str, at: int) -> None:
    it = model(family)
    (end,), start = it.tokenizer.end_tokens, it.tokenizer.named_tokens["<|start|>"]
    text = it.written("", [("weather", {})]).replace("{}", "nonsense")
    tokens = chopped(it, text, at, start)
    if is_allowed(it.matcher(OFFER), tokens, end):
        said, called, _ = taken_apart(it, tokens)
        assert not called
        assert said.replace("<|start|>", "") == text


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("blanks", [" ", "\n\n", "\t \n", " " * 20])
def test_blanks_before_a_call_change_nothing(family: str, blanks: str) -> None:
    it = model(family)
    (end,) = it.tokenizer.end_tokens
    good = it.written(blanks, [("time", {})])
    if len(blanks) < 9 or it.calling.format.after_text:
        assert is_allowed(it.matcher(OFFER), it.tokens(good), end)
    assert taken_apart(it, it.tokens(good))[:2] == ("", [("time", {})])
    assert not is_allowed(it.matcher(OFFER), it.tokens(good.replace("{}", "nonsense")), end)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_form_may_have_anything_in_it(family: str) -> None:
    """A string that looks like a call is none."""
    it = model(family)
    (end,) = it.tokenizer.end_tokens
    if not it.calling.format.after_text:
        with pytest.raises(RequestError, match="cannot be told"):
            it.matcher(FORMED)
        return
    note = it.written("", [("time", {})])
    for said in (json.dumps({"note": note}), json.dumps({"note": "Hm."})):
        plain = [token for letter in said for token in it.tokens(letter)]
        assert is_allowed(it.matcher(FORMED), plain, end)
        assert taken_apart(it, plain, FORMED)[:2] == (said, [])
    called = it.tokens(note)
    assert is_allowed(it.matcher(FORMED), called, end)
    assert taken_apart(it, called, FORMED)[:2] == ("", [("time", {})])
    assert not any(is_allowed(it.matcher(FORMED), it.tokens(text), end) for text in ("Hm.", f"Hm.{note}"))


@pytest.mark.parametrize("family", FAMILIES)
def test_tokens_of_calls_are_not_said(family: str) -> None:
    """They have no text, and would be seen."""
    it = model(family)
    own = {
        token
        for name, token in it.tokenizer.named_tokens.items()
        if any(name in text for text in it.calling.format.texts)
    }
    begin = set(it.tokens(it.calling.format.opening)[:1])
    allowed = it.matcher(OFFER).allowed()
    assert allowed is not None
    assert own.intersection(np.flatnonzero(allowed).tolist()) <= begin


@pytest.mark.parametrize("family", FAMILIES)
def test_thoughts_come_before_calls_that_are_required(family: str) -> None:
    it = model(family)
    (end,) = it.tokenizer.end_tokens
    thinks = "<think>" in it.tokenizer.named_tokens
    call = it.written("", [("time", {})])
    thought = "Hm.</think>\n\n"
    asked, thinking = it.tokens("Why <think> so?"), it.tokens("Why?<think>\n")
    for prompt, answers in (
        (asked, {call: True, f"<think>{thought}{call}": thinks, f"{thought}{call}": False}),
        (thinking, {call: not thinks, f"{thought}{call}": thinks}),
    ):
        for text, allowed in answers.items():
            assert is_allowed(it.matcher(REQUIRED, prompt), it.tokens(text), end) == allowed, text


@pytest.mark.parametrize("offer", [OFFER, REQUIRED, ONE], ids=["any", "required", "one"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(3))
def test_whatever_is_allowed_calls_what_there_is_as_it_wants(family: str, offer: Offer, seed: int) -> None:
    it, rng = model(family), random.Random(seed)
    (end,) = it.tokenizer.end_tokens
    matcher, tokens = it.matcher(offer), list[int]()
    printable = set(it.tokens("".join(map(chr, range(32, 127)))))
    named = set(it.tokenizer.named_tokens.values())
    begin = dict(enumerate(it.tokens(it.calling.format.opening), 20))  # as by chance it would never
    for step in range(600):
        allowed = matcher.allowed()
        assert allowed is not None
        assert not matcher.error
        if allowed[end] and step > 300:
            break
        possible = set(np.flatnonzero(allowed).tolist()) - {end}
        if not possible:
            break
        likely = possible & (named if rng.random() < 0.1 else printable)
        token = begin[step] if begin.get(step) in possible else rng.choice(sorted(likely or possible))
        matcher.consume([token])
        tokens.append(token)
    _, called, _ = taken_apart(it, tokens)
    for name, arguments in called:
        jsonschema.validate(arguments, FUNCTIONS[name])
    assert len(called) <= (600 if offer.several else 1)
    if offer.calls is Calls.REQUIRED:
        assert called
