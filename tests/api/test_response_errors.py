"""What `/v1/responses` refuses is named as the client wrote it, not as the chat that it becomes."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from draft_service.api.responses.request import ResponsesBody
from tests.api.scripted import CONTEXT, MODEL, ScriptedEngine

USER = {"role": "user", "content": "x"}
TIME = {"type": "function", "name": "time"}
CALL = {"type": "function_call", "call_id": "a", "name": "x", "arguments": "{}"}
UNIQUE = {"type": "array", "items": {}, "uniqueItems": True}


def refusal(http: httpx.Client, fields: dict[str, Any]) -> dict[str, Any]:
    body = json.dumps({"model": MODEL, "input": "x", **fields})
    response = http.post("/v1/responses", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text
    error: dict[str, Any] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def tool(**fields: Any) -> dict[str, Any]:
    return {"tools": [{"type": "function", "name": "x", **fields}]}


def form(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"text": {"format": {"type": "json_schema", "name": "x", "schema": schema, **fields}}}


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": None}, "input", ""),
        ({"input": []}, "input", "at least 1"),
        ({"input": "\ud800"}, "input", "surrogates"),
        ({"input": [5]}, "input.0", "dictionary"),
        ({"input": [USER, {"role": "critic", "content": "x"}]}, "input.1.role", "'developer'"),
        ({"input": [USER, USER, {"role": "user"}]}, "input.2.content", "required"),
        ({"input": [USER, {"role": "user", "content": []}]}, "input.1.content", "at least 1"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content.0.type", "input_text"),
        ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "input.0.content.0.text", "required"),
        ({"input": [USER, {"type": "computer_call"}]}, "input.1.type", "'function_call'"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input.0", "are told store: false"),
        ({"input": [CALL | {"arguments": {}}]}, "input.0.arguments", "string"),
        ({"input": [CALL | {"name": "a b"}]}, "input.0.name", "pattern"),
        ({"input": [{"type": "function_call_output", "output": "x"}]}, "input.0.call_id", "required"),
        ({"input": [{"type": "reasoning", "summary": [{"type": "text"}]}]}, "input.0.summary.0.type", "summary_text"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input", "nothing is said"),
        ({"input": [USER, {"role": "system", "content": "x"}]}, "input", "system comes first"),
        ({"input": "x" * CONTEXT}, "input", f"{CONTEXT} tokens"),
        ({"input": "x" * 100, "max_output_tokens": 50}, "input", "50 would be generated"),
        ({"instructions": 5}, "instructions", "string"),
        ({"max_output_tokens": 0}, "max_output_tokens", "greater"),
        ({"max_output_tokens": 3, "min_tokens": 4}, "min_tokens", "above max_output_tokens, 3"),
        ({"max_tokens": 3}, "max_tokens", "max_output_tokens"),
        ({"messages": [USER]}, "messages", "input"),
        ({"response_format": {"type": "text"}}, "response_format", "text.format"),
        ({"n": 2}, "n", "leave it out"),
        ({"top_logprobs": 2}, "top_logprobs", "message.output_text.logprobs"),
        ({"include": ["message.logprobs"]}, "include.0", "message.output_text.logprobs"),
        ({"metadata": {"a": 1}}, "metadata.a", "string"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", "at most 16"),
        ({"truncation": "auto"}, "truncation", "leave it out"),
        ({"previous_response_id": "resp_1"}, "previous_response_id", "send all of the conversation as input"),
        ({"conversation": "conv_1"}, "conversation", "send all of the conversation as input"),
        ({"background": True}, "background", "leave it out"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt", "send the prompt as instructions and input"),
        ({"tools": [{"type": "web_search"}]}, "tools.0.type", "offer functions that your program runs"),
        ({"tools": [{"name": "x"}]}, "tools.0.type", "required"),
        ({"tools": [TIME, {"type": "function", "function": {"name": "x"}}]}, "tools.1.name", "required"),
        (tool(name="a b"), "tools.0.name", "pattern"),
        (tool(parameters="{}"), "tools.0.parameters", "dictionary"),
        (tool(parameters={"type": "array"}), "tools.0.parameters.type", "type object"),
        ({"tools": [TIME, TIME]}, "tools", "same name"),
        ({"tool_choice": "required"}, "tool_choice", "needs tools"),
        ({"tools": [TIME], "tool_choice": "always"}, "tool_choice", "'required'"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice", "no tool 'x'"),
        ({"tools": [TIME], "tool_choice": {"type": "web_search"}}, "tool_choice.type", "'allowed_tools'"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "'json_schema'"),
        ({"text": {"format": {"type": "json_schema"}}}, "text.format.name", "required"),
        (form("{}"), "text.format.schema", "dictionary"),
        (form({"type": "strin"}), "text.format.schema", "text.format.schema cannot be followed"),
        (form(UNIQUE, strict=True), "text.format.schema", "uniqueItems"),
        (
            form({}) | {"structured_outputs": {"regex": "a"}},
            "structured_outputs.regex",
            "text.format.schema and structured_outputs.regex",
        ),
        ({"reasoning": {"effort": 3}}, "reasoning.effort", "string"),
        ({"reasoning_effort": "low"}, "reasoning_effort", "reasoning.effort"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize", "cannot be set"),
        ({"temperature": -1}, "temperature", "greater"),
        ({"echo": True}, "echo", "leave it out"),
    ],
)
def test_what_cannot_be(
    http: httpx.Client, engine: ScriptedEngine, fields: dict[str, Any], param: str, words: str
) -> None:
    error = refusal(http, fields)
    assert error["param"] == param, error["message"]
    assert words in error["message"]
    assert "messages" not in error["message"] or "messages" in fields or "these messages" in error["message"]
    assert engine.requests == []


def test_another_model(http: httpx.Client) -> None:
    response = http.post("/v1/responses", json={"model": "other", "input": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")


@pytest.mark.parametrize(
    "wrong",
    [
        {"input": [{"role": "user", "content": [0] * 1000}] * 400},
        {"input": [0] * 4000},
        {"include": ["x"] * 50},
        {"metadata": {str(each): each for each in range(60_000)}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_body_that_is_wrong_everywhere_is_not_described_everywhere(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        ResponsesBody.model_validate({"model": MODEL, "input": "x", **wrong})
    assert caught.value.error_count() <= 4


def test_more_calls_than_a_chats_message_has(http: httpx.Client, engine: ScriptedEngine) -> None:
    """Whatever an item is told to be, a chat is made of it, or it is refused."""
    error = refusal(http, {"input": [USER, *([CALL] * 4000)]})
    assert (error["param"], error["code"]) == ("input", "context_length_exceeded")
