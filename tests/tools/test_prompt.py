"""Conversations with calls, as chat templates are given them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from draft_service.tools.call_format import EXPLAINED, CallFormat
from draft_service.tools.calling import ToolCalling
from draft_service.tools.grammar import Calls, Function, Offer
from draft_service.tools.prompt import Message, explained, for_template, with_systems_joined
from pipedec.errors import RequestError
from tests.tools.templates import FAMILIES

USER: Message = {"role": "user", "content": "Weather?"}
TOOLS: list[Message] = [
    {"type": "function", "function": {"name": "weather", "description": "It.", "parameters": {"type": "object"}}}
]


def call(id: str, name: str, arguments: str = "{}") -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


A, B = "aaaaaaaaa", "bbbbbbbbb"
CALLED: Message = {"role": "assistant", "content": None, "tool_calls": [call(A, "weather", '{"city": "Rome"}')]}
RESULT: Message = {"role": "tool", "tool_call_id": A, "content": "sunny"}


def test_a_template_that_takes_several_system_messages_gets_them() -> None:
    tokenizer = FAMILIES["tags"].tokenizer()
    systems = [{"role": "system", "content": content} for content in "ab"]
    prompt = tokenizer.decode(ToolCalling(tokenizer).prompt([*systems, USER], None, {}), special=True)
    assert prompt.startswith("<|start|>system\na<|end|><|start|>system\nb<|end|>")


def test_templates_read_arguments_as_objects_and_results_with_names() -> None:
    bare = CallFormat("a", "b", "c", no_content="")
    called, result = for_template([CALLED, RESULT], bare)
    assert called["content"] == ""
    assert called["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Rome"}}
    assert result == RESULT | {"name": "weather"}
    assert CALLED["content"] is None, "what was given is as it was"
    as_text = CallFormat("a", "b", "c", arguments_as_text=True)
    assert for_template([CALLED], as_text) == [CALLED]
    said = CALLED | {"content": "Hm."}
    assert for_template([said], bare)[0]["content"] == "Hm."
    stray = RESULT | {"tool_call_id": B, "name": "other"}
    assert for_template([CALLED, stray], bare)[1] == stray
    blank = CALLED | {"tool_calls": [call(A, "weather", "")]}
    assert for_template([blank], bare)[0]["tool_calls"][0]["function"]["arguments"] == {}
    deep = CALLED | {"tool_calls": [call(A, "weather", "[" * 100_000)]}
    with pytest.raises(RequestError, match="deeply"):
        for_template([deep], bare)
    cut = CALLED | {"tool_calls": [call(A, "weather", '{"ci')]}
    assert for_template([cut], bare)[0]["tool_calls"][0]["function"]["arguments"] == {"arguments": '{"ci'}


def test_ids_of_other_servers_become_such_as_every_template_takes() -> None:
    foreign = CALLED | {"tool_calls": [call("call_Fj3kd9", "weather")]}
    called, result = for_template([foreign, RESULT | {"tool_call_id": "call_Fj3kd9"}], CallFormat("a", "b", "c"))
    (id,) = (each["id"] for each in called["tool_calls"])
    assert result["tool_call_id"] == id
    assert len(id) == 9
    assert id.isalnum()


def test_results_come_in_the_order_of_their_calls() -> None:
    """Ids may be used again."""
    calls = CALLED | {"tool_calls": [call(A, "weather"), call(B, "time")]}
    results = [RESULT | {"tool_call_id": B, "content": "noon"}, RESULT]
    messages = [USER, calls, *results, CALLED | {"tool_calls": [call(A, "time")]}, RESULT]
    told = [each for each in for_template(messages, CallFormat("a", "b", "c")) if each["role"] == "tool"]
    assert [(each["name"], each["content"]) for each in told] == [
        *(("weather", "sunny"), ("time", "noon")),
        ("time", "sunny"),
    ]
    said = explained(messages, (), takes_system=True)[2]["content"]
    assert said.index("sunny") < said.index("noon")


def test_a_prompt_explains_what_a_template_does_not_know() -> None:
    (system, user) = explained([USER], TOOLS, takes_system=True)
    assert (system["role"], user) == ("system", USER)
    assert json.dumps(TOOLS[0]["function"]) in system["content"].splitlines()
    assert EXPLAINED.opening in system["content"]
    own: Message = {"role": "system", "content": "Be brief."}
    (system, user) = explained([own, USER], TOOLS, takes_system=True)
    assert system["content"].startswith("Be brief.\n\n")
    (user,) = explained([USER], TOOLS, takes_system=False)
    assert user["role"] == "user"
    assert user["content"].endswith("\n\nWeather?")
    assert "It." in user["content"]
    answer: Message = {"role": "assistant", "content": "Hm."}
    assert [each["role"] for each in explained([answer], TOOLS, takes_system=False)] == ["user", "assistant"]


def test_calls_and_results_are_text_then() -> None:
    calls = CALLED | {"content": "Hm.", "tool_calls": [*CALLED["tool_calls"], call(B, "time")]}
    messages = [USER, calls, RESULT, RESULT | {"tool_call_id": B, "content": "noon"}, USER]
    first, called, results = explained(messages, (), takes_system=True)
    assert first == USER
    assert called == {
        "role": "assistant",
        "content": 'Hm.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>',
    }
    response = "<tool_response>\n{}\n</tool_response>"
    told = f"{response.format('sunny')}\n{response.format('noon')}\nWeather?"
    assert results == {"role": "user", "content": told}, "templates want users and assistants in turn"
    assert explained([CALLED, RESULT], (), takes_system=True)[-1]["content"] == response.format("sunny")


@pytest.mark.parametrize("family", ["tags", "marked", "bare", "as text", "ignorant", "user first"])
def test_the_next_prompt_begins_with_what_was_said(family: str) -> None:
    """So that nothing of it is computed again."""
    tokenizer = FAMILIES[family].tokenizer()
    calling = ToolCalling(tokenizer)
    offer = Offer(tuple(TOOLS), (Function("weather", {"type": "object"}),), Calls.POSSIBLE)
    before = tokenizer.decode(calling.prompt([USER], offer, {}), special=True)
    after = tokenizer.decode(calling.prompt([USER, CALLED, RESULT], offer, {}), special=True)
    form = calling.format
    said = f'{form.opening}weather{form.between}{{"city": "Rome"}}{form.closing}'
    assert after.startswith(before + said)
    assert "sunny" in after.removeprefix(before + said)


def test_system_messages_in_a_row_are_one() -> None:
    system, user = {"role": "system", "content": "a"}, {"role": "user", "content": "b"}
    joined = with_systems_joined([system, system, user, user, system, *[system] * 4000])
    assert [message["content"] for message in joined] == ["a\n\na", "b", "b", "\n\n".join("a" * 4001)]
