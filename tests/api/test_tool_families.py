"""Models of several families, each called upon and calling in its own way."""

from __future__ import annotations

from typing import Any

import openai
import pytest

from pipedec.model.grammar import Grammars
from tests.api.another import another
from tests.api.offered import ASK, CITY, ROME, WEATHER, may_be, prompt
from tests.api.scripted import MODEL, tokens_of
from tests.tools.templates import FAMILIES


@pytest.mark.parametrize("family", ["marked", "ignorant", "user first"])
def test_every_family_calls(family: str) -> None:
    text = '[CALLS]weather[ARGS]{"city": "Rome"}' if family == "marked" else ROME
    with another(FAMILIES[family].tokenizer()) as model:
        model.say(text)
        answer = model.client.chat.completions.create(model=MODEL, messages=ASK, tools=[WEATHER])
    calls = answer.choices[0].message.tool_calls or ()
    assert [call.function.arguments for call in calls if call.type == "function"] == ['{"city": "Rome"}']
    assert may_be(model.engine, Grammars(model.engine.tokenizer.backend, 262), text)
    assert prompt(model.engine).count("It.") == 1


def test_json_may_have_what_looks_like_a_call_in_it() -> None:
    said = '{"city": "[CALLS]weather[ARGS]{}"}'
    form: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}}
    with another(FAMILIES["marked"].tokenizer()) as model:
        model.engine.script = [*tokens_of(model.engine.tokenizer, said.encode()), *model.engine.tokenizer.end_tokens]
        answer = model.client.chat.completions.create(
            model=MODEL, messages=ASK, tools=[WEATHER], response_format=form
        ).choices[0]
    assert (answer.finish_reason, answer.message.content, answer.message.tool_calls) == ("stop", said, None)


def test_this_models_calls_cannot_be_told_from_json() -> None:
    with (
        another(FAMILIES["bare"].tokenizer()) as model,
        pytest.raises(openai.BadRequestError, match="cannot be told from JSON"),
    ):
        model.client.chat.completions.create(
            model=MODEL, messages=ASK, tools=[WEATHER], response_format={"type": "json_object"}
        )
