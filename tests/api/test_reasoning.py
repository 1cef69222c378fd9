"""Answers of models that reason: what they reason, and what they say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from draft_service.api.forms import MAX_SOURCE
from pipedec.model.grammar import Grammars
from tests.api.another import Another, another
from tests.api.offered import CITY, ROME, WEATHER, may_be, prompt
from tests.api.scripted import MODEL
from tests.reasoning.families import FAMILIES

ASK: Any = [{"role": "user", "content": "Why?"}]
FORM: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": CITY}}


@pytest.fixture(scope="module", params=["hybrid", "brackets", "words"])
def model(request: pytest.FixtureRequest) -> Iterator[Another]:
    with another(FAMILIES[request.param].tokenizer()) as model:
        yield model


@pytest.fixture(scope="module")
def opened() -> Iterator[Another]:
    """A model whose prompts begin its reasoning."""
    with another(FAMILIES["opened"].tokenizer()) as model:
        yield model


def tagged(model: Another, reasoning: str, said: str) -> str:
    brackets = "[THINK]" in model.engine.tokenizer.named_tokens
    opening, closing = ("[THINK]", "[/THINK]") if brackets else ("<think>", "</think>")
    return f"{opening}\n{reasoning}\n{closing}\n\n{said}"


def answer(model: Another, **fields: Any) -> dict[str, Any]:
    reply = model.client.chat.completions.create(**{"model": MODEL, "messages": ASK} | fields)
    return {"usage": reply.usage, "finish": reply.choices[0].finish_reason, **reply.choices[0].message.model_dump()}


def test_an_answer_is_told_apart_from_its_reasoning(model: Another) -> None:
    model.say(tagged(model, "Hm.\n\nOr?", "Yes."))
    said = answer(model)
    assert (said["reasoning_content"], said["content"], said["finish"]) == ("Hm.\n\nOr?", "Yes.", "stop")
    assert said["reasoning"] == said["reasoning_content"]
    tokens = len(model.engine.script)
    of_text = len(model.engine.tokenizer.encode("\n\nYes.")) + 1
    assert said["usage"].completion_tokens == tokens
    assert said["usage"].completion_tokens_details.reasoning_tokens == pytest.approx(tokens - of_text, abs=6)


def test_it_is_streamed_likewise(model: Another) -> None:
    model.say(tagged(model, "Hm.", "Yes."))
    chunks = model.client.chat.completions.create(model=MODEL, messages=ASK, stream=True)
    told = [chunk.choices[0].delta.model_dump(exclude_none=True) for chunk in chunks]
    assert told[0] == {"role": "assistant", "content": ""}
    reasoned = [each["reasoning_content"] for each in told if "reasoning_content" in each]
    assert "".join(reasoned) == "Hm."
    assert "".join(each.get("content", "") for each in told) == "Yes."
    assert all(each.get("reasoning") == each.get("reasoning_content") for each in told)
    order = [("reasoning" in each) for each in told if "reasoning" in each or each.get("content")]
    assert order == sorted(order, reverse=True)
    assert len(reasoned) > 1


def test_an_answer_without_reasoning_has_no_such_field(model: Another) -> None:
    model.say("Yes.")
    said = answer(model)
    assert said["content"] == "Yes."
    assert "reasoning_content" not in said
    assert said["usage"].completion_tokens_details.reasoning_tokens == 0


def test_a_prompt_may_have_begun_it(opened: Another) -> None:
    opened.say("Hm.\n</think>\n\nYes.")
    said = answer(opened)
    assert (said["reasoning_content"], said["content"]) == ("Hm.", "Yes.")
    opened.say("Hm.")
    cut = answer(opened, max_tokens=2)
    assert (cut["reasoning_content"], cut["content"], cut["finish"]) == ("Hm", "", "length")
    assert cut["usage"].completion_tokens_details.reasoning_tokens == 2


def test_who_wants_one_text_or_no_reasoning_says_so(model: Another) -> None:
    whole = tagged(model, "Hm.", "Yes.")
    model.say(whole)
    said = answer(model, extra_body={"include_reasoning": False})
    assert said["content"] == "Yes."
    assert "reasoning_content" not in said
    assert said["usage"].completion_tokens_details.reasoning_tokens > 3
    said = answer(model, extra_body={"separate_reasoning": False})
    assert said["content"] in (whole, whole.replace("[THINK]", "").replace("[/THINK]", ""))
    assert "reasoning_content" not in said


def test_stop_strings_are_not_looked_for_in_reasoning(model: Another) -> None:
    model.say(tagged(model, "Hm. Stop? No.", "Yes. Stop! No."))
    said = answer(model, stop="Stop", logprobs=True)
    assert (said["reasoning_content"], said["content"], said["finish"]) == ("Hm. Stop? No.", "Yes. ", "stop")


def test_all_tokens_are_scored_up_to_a_stop_string(model: Another) -> None:
    model.say(tagged(model, "Hm.", "Yes. Stop!"))
    reply = model.client.chat.completions.create(model=MODEL, messages=ASK, stop="Stop", logprobs=True)
    assert reply.choices[0].logprobs is not None
    scored = b"".join(bytes(each.bytes or ()) for each in reply.choices[0].logprobs.content or ())
    assert scored.decode() == tagged(model, "Hm.", "Yes. ")


def test_a_form_is_that_of_what_is_said(model: Another) -> None:
    text = tagged(model, "{", '{"city": "Rome"}')
    model.say(text)
    said = answer(model, response_format=FORM)
    assert (said["reasoning_content"], said["content"]) == ("{", '{"city": "Rome"}')
    grammars = Grammars(model.engine.tokenizer.backend, 262)
    assert may_be(model.engine, grammars, text)
    assert may_be(model.engine, grammars, '{"city": "Rome"}')
    assert not may_be(model.engine, grammars, tagged(model, "{", "Rome"))


@pytest.mark.parametrize("fields", [{}, {"tool_choice": "required"}, {"response_format": FORM}], ids=str)
def test_calls_come_after_reasoning(model: Another, fields: dict[str, Any]) -> None:
    text = tagged(model, "Hm.", ROME)
    model.say(text)
    said = answer(model, tools=[WEATHER], **fields)
    assert (said["reasoning_content"], said["content"], said["finish"]) == ("Hm.", None, "tool_calls")
    assert said["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'
    assert may_be(model.engine, Grammars(model.engine.tokenizer.backend, 262), text)


def test_what_looks_like_a_call_in_reasoning_is_none(model: Another) -> None:
    text = tagged(model, ROME, "Yes.")
    model.say(text)
    said = answer(model, tools=[WEATHER])
    assert (said["reasoning_content"], said["content"], said["tool_calls"]) == (ROME, "Yes.", None)
    assert may_be(model.engine, Grammars(model.engine.tokenizer.backend, 262), text)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_templates_are_given_what_was_reasoned(field: str) -> None:
    history = [*ASK, {"role": "assistant", "content": "Yes.", field: "Hm."}]
    with another(FAMILIES["hybrid"].tokenizer()) as model:
        model.say("So.")
        answer(model, messages=history)
        assert prompt(model.engine).endswith("<think>\nHm.\n</think>\n\nYes.assistant\n")


def test_no_effort_is_no_reasoning() -> None:
    with another(FAMILIES["hybrid"].tokenizer()) as model:
        model.say("<think>Yes.")
        said = answer(model, reasoning_effort="none")
        assert prompt(model.engine).endswith("assistant\n<think>\n\n</think>\n\n")
        assert said["content"] == "<think>Yes."
        answer(model, reasoning_effort="none", extra_body={"chat_template_kwargs": {"enable_thinking": True}})
        assert prompt(model.engine).endswith("Why?assistant\n")


def test_completions_are_one_text(opened: Another) -> None:
    opened.say("Hm.</think>Yes.")
    reply = opened.client.completions.create(model=MODEL, prompt="Why?<think>", max_tokens=50)
    assert reply.choices[0].text == "Hm.</think>Yes."
    opened.client.completions.create(
        model=MODEL, prompt="Why?<think>", extra_body={"structured_outputs": {"choice": ["no"]}}
    )
    assert may_be(opened.engine, Grammars(opened.engine.tokenizer.backend, 262), "no")


def test_calls_are_looked_for_behind_it_alone(model: Another) -> None:
    with pytest.raises(openai.BadRequestError, match="leave it out") as refused:
        answer(model, tools=[WEATHER], extra_body={"separate_reasoning": False})
    assert refused.value.param == "separate_reasoning"


def test_what_is_asked_for_may_be_as_long_as_without() -> None:
    names = [f"tool_{i}" for i in range(128)]
    parameters = CITY | {"required": [f"{i:0135}" for i in range(2)]}
    tools: list[Any] = [{"type": "function", "function": {"name": each, "parameters": parameters}} for each in names]
    with another(FAMILIES["hybrid"].tokenizer(), context=2**18) as model:
        model.say("Yes.")
        assert answer(model, tools=tools)["content"] == "Yes."
        assert len(model.engine.requests[-1].sampling.grammar) > MAX_SOURCE
