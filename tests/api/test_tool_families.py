"""Models of several families, each called upon and calling in its own way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import openai
import pytest
from prometheus_client import CollectorRegistry

from draft_service.api import create_app
from draft_service.generation import EngineInfo
from draft_service.grammar_trial import GrammarTrial
from pipedec.metrics.requests import RequestMetrics
from pipedec.model.grammar import Grammars
from tests.api.offered import ASK, CITY, ROME, WEATHER, may_be, prompt
from tests.api.scripted import MODEL, ScriptedEngine, served, tokens_of
from tests.tools.templates import FAMILIES


class Other(NamedTuple):
    """A model of another family."""

    engine: ScriptedEngine
    client: openai.OpenAI

    def say(self, text: str) -> None:
        backend = self.engine.tokenizer.backend
        self.engine.script = [*backend.encode(text, add_special_tokens=False).ids, *self.engine.tokenizer.end_tokens]


@contextmanager
def another(family: str) -> Iterator[Other]:
    tokenizer = FAMILIES[family].tokenizer()
    engine = ScriptedEngine(tokenizer, info=EngineInfo(MODEL, 4096, 262, ((0, 5),)))
    trial = GrammarTrial(tokenizer.backend, 262)
    app = create_app(engine, tokenizer, RequestMetrics(CollectorRegistry(), MODEL), trial=trial)
    with trial, served(app) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        yield Other(engine, openai.OpenAI(base_url=url, api_key="any", max_retries=0))


@pytest.mark.parametrize("family", ["marked", "ignorant", "user first"])
def test_every_family_calls(family: str) -> None:
    text = '[CALLS]weather[ARGS]{"city": "Rome"}' if family == "marked" else ROME
    with another(family) as model:
        model.say(text)
        answer = model.client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER])
    calls = answer.choices[0].message.tool_calls or ()
    assert [call.function.arguments for call in calls if call.type == "function"] == ['{"city": "Rome"}']
    assert may_be(model.engine, Grammars(model.engine.tokenizer.backend, 262), text)
    assert prompt(model.engine).count("It.") == 1


def test_json_may_have_what_looks_like_a_call_in_it() -> None:
    said = '{"city": "[CALLS]weather[ARGS]{}"}'
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}}
    with another("marked") as model:
        model.engine.script = [*tokens_of(model.engine.tokenizer, said.encode()), *model.engine.tokenizer.end_tokens]
        answer = model.client.chat.completions.create(
            model=MODEL, messages=ASK, tools=[WEATHER], response_format=form
        ).choices[0]
    assert (answer.finish_reason, answer.message.content, answer.message.tool_calls) == ("stop", said, None)


def test_this_models_calls_cannot_be_told_from_json() -> None:
    with another("bare") as model, pytest.raises(openai.BadRequestError, match="cannot be told from JSON"):
        model.client.chat.completions.create(
            model=MODEL, messages=ASK, tools=[WEATHER], response_format={"type": "json_object"}
        )
