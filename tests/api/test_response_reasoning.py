"""Responses of models that reason, as OpenAI's own client understands them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from openai.types.responses import Response, ResponseReasoningItem
from pydantic import TypeAdapter

from draft_service.api.responses.reply_types import ResponseEvent, ResponseResource
from tests.api.another import Another, another
from tests.api.offered import CITY, ROME, prompt
from tests.api.scripted import MODEL
from tests.reasoning.families import FAMILIES

WEATHER: Any = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}
SCORED: Any = {"include": ["message.output_text.logprobs"]}
BEGUN = ["response.output_item.added", "response.content_part.added"]
ENDED = ["response.content_part.done", "response.output_item.done"]


@pytest.fixture(scope="module")
def model() -> Iterator[Another]:
    with another(FAMILIES["hybrid"].tokenizer()) as model:
        yield model


def respond(model: Another, **fields: Any) -> Response:
    response = model.client.responses.create(**{"model": MODEL, "input": "Why?"} | fields)
    TypeAdapter(ResponseResource).validate_python(response.to_dict())
    return response


def reasoned(response: Response) -> str:
    """What the first item says."""
    item = response.output[0]
    assert isinstance(item, ResponseReasoningItem)
    (part,) = item.content or ()
    return part.text


def test_reasoning_is_an_item_before_the_message(model: Another) -> None:
    model.say("<think>\nHm.\n</think>\n\nYes.")
    response = respond(model)
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert (reasoned(response), response.output_text, response.status) == ("Hm.", "Yes.", "completed")
    assert response.usage is not None
    assert response.usage.output_tokens_details.reasoning_tokens == len("_\nHm.\n_")


def test_it_is_streamed_likewise(model: Another) -> None:
    model.say("<think>\nHm.\n</think>\n\nYes.")
    events = list(model.client.responses.create(model=MODEL, input="Why?", stream=True))
    for each in events:
        TypeAdapter(ResponseEvent).validate_python(each.to_dict())
        type(each).model_validate(each.to_dict())
    types = list(dict.fromkeys(each.type for each in events[2:]))
    assert types == [
        *(*BEGUN, "response.reasoning_text.delta", "response.reasoning_text.done", *ENDED),
        *("response.output_text.delta", "response.output_text.done", "response.completed"),
    ]
    assert [each.output_index for each in events if each.type == "response.output_item.added"] == [0, 1]
    assert "".join(each.delta for each in events if each.type == "response.reasoning_text.delta") == "Hm."
    whole = events[-1]
    assert whole.type == "response.completed"
    assert reasoned(whole.response) == "Hm."


def test_calls_come_behind_it_and_it_is_sent_back_with_them(model: Another) -> None:
    model.say(f"<think>Hm.</think>{ROME}")
    response = respond(model, tools=[WEATHER])
    assert [item.type for item in response.output] == ["reasoning", "function_call"]
    call = response.output[1]
    assert call.type == "function_call"
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    model.say("So.")
    respond(model, tools=[WEATHER], input=[{"role": "user", "content": "Why?"}, *response.output])
    assert "<think>\nHm.\n</think>" in prompt(model.engine)
    respond(model, tools=[WEATHER], input=[{"role": "user", "content": "Why?"}, *response.output, result])
    assert "sunny" in prompt(model.engine)


def test_what_is_cut_within_it_has_no_message(model: Another) -> None:
    model.say("<think>Hm.")
    response = respond(model, max_output_tokens=3)
    assert [(item.type, item.status) for item in response.output if item.type == "reasoning"] == [
        ("reasoning", "incomplete")
    ]
    assert (len(response.output), response.status, reasoned(response)) == (1, "incomplete", "Hm")


def test_what_ends_within_it_says_nothing(model: Another) -> None:
    model.say("<think>Hm.")
    response = respond(model)
    assert [item.type for item in response.output] == ["reasoning", "message"]
    assert (response.output_text, response.status) == ("", "completed")


@pytest.mark.parametrize("said", ["Yes.", f"Yes.{ROME}"])
def test_scores_are_those_of_the_message(model: Another, said: str) -> None:
    model.say(f"<think>Hm.</think>{said}")
    message = respond(model, tools=[WEATHER], **SCORED).output[1]
    assert message.type == "message"
    (part,) = message.content
    assert part.type == "output_text"
    assert "".join(score.token for score in part.logprobs or ()) == "Yes."


@pytest.mark.parametrize("family", ["hybrid", "words"])
@pytest.mark.parametrize(("said", "type"), [("Yes.", "message"), (ROME, "function_call")])
def test_tags_and_blanks_around_them_have_no_scores(family: str, said: str, type: str) -> None:
    with another(FAMILIES[family].tokenizer()) as model:
        model.say(f"\n<think>\nHm.\n</think>\n\n{said}")
        whole = respond(model, tools=[WEATHER], **SCORED)
        *_, last = model.client.responses.create(model=MODEL, input="Why?", tools=[WEATHER], stream=True, **SCORED)
    assert last.type == "response.completed"
    for response in (whole, last.response):
        assert [item.type for item in response.output] == ["reasoning", type]
        parts = [part for item in response.output if item.type == "message" for part in item.content]
        told = [score.token for part in parts if part.type == "output_text" for score in part.logprobs or ()]
        assert "".join(told) == ("Yes." if type == "message" else "")


def test_no_effort_is_no_reasoning(model: Another) -> None:
    model.say("Yes.")
    response = respond(model, reasoning={"effort": "none"})
    assert prompt(model.engine).endswith("assistant\n<think>\n\n</think>\n\n")
    assert [item.type for item in response.output] == ["message"]
