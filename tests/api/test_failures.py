"""Every failure has OpenAI's shape and says which field is wrong."""

from __future__ import annotations

import gzip
import json
from typing import Any

import httpx
import pytest
from pydantic import ValidationError

from draft_service.api.openai_types import ChatBody
from pipedec.errors import UnavailableError
from tests.api.scripted import CONTEXT, MODEL, ScriptedEngine

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 0


def failure(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status, response.text
    body = response.json()
    assert set(body) == {"error"}
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    error: dict[str, Any] = body["error"]
    return error


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, "prompt"),
        ({"prompt": {}}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt.0"),
        ({"prompt": [[]]}, "prompt.0"),
        ({"prompt": [True]}, "prompt.0"),
        ({"prompt": [258]}, "prompt"),
        ({"prompt": [-1]}, "prompt.0"),
        ({"prompt": "\ud800"}, "prompt"),
        ({"prompt": ["x"] * 129}, "prompt"),
        ({"prompt": ["x"] * 2, "n": 65}, "n"),
        ({"model": 5}, "model"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"n": "1"}, "n"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"min_tokens": 17}, "min_tokens"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"seed": 0.5}, "seed"),
        ({"logit_bias": {"a": 1}}, "logit_bias.a"),
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"258": 1}}, "logit_bias"),
        ({"logit_bias": {"\ud800": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a", 5]}, "stop.1"),
        ({"stop": ["a"] * 17}, "stop"),
        ({"stop": "a" * 257}, "stop"),
        ({"stop_token_ids": [258]}, "stop_token_ids"),
        ({"logprobs": 21}, "logprobs"),
        ({"stream": 1}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"include_usage": 1}}, "stream_options.include_usage"),
        ({"echo": True}, "echo"),
        ({"echo": 0}, "echo"),
        ({"suffix": "end"}, "suffix"),
        ({"guided_regex": "a*"}, "guided_regex"),
        ({"json_schema": "{}"}, "json_schema"),
        ({"regex": "a*"}, "regex"),
        ({"grammar": "root ::= x"}, "grammar"),
        ({"logits_processors": ["x"]}, "logits_processors"),
        ({"typical_p": 0.9}, "typical_p"),
        ({"return_token_ids": True}, "return_token_ids"),
        ({"prompt_embeds": "aaaa"}, "prompt_embeds"),
        ({"add_special_tokens": False}, "add_special_tokens"),
    ],
)
def test_wrong_fields_of_a_completion(
    http: httpx.Client, engine: ScriptedEngine, fields: dict[str, Any], param: str
) -> None:
    body = json.dumps({"model": MODEL, "prompt": "x", **fields})
    response = http.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    error = failure(response, 400)
    assert (error["param"], error["type"], error["code"]) == (param, "invalid_request_error", None)
    assert engine.requests == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "critic", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content.0.type"),
        ({"messages": [{"role": "assistant", "content": "", "tool_calls": [1]}]}, "messages.0.tool_calls.0"),
        ({"messages": [{"role": role, "content": "x"} for role in ("user", "system")]}, "messages"),
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"functions": [{}]}, "functions"),
        ({"documents": [{"text": "x"}]}, "documents"),
        ({"add_special_tokens": True}, "add_special_tokens"),
        ({"reasoning_effort": 3}, "reasoning_effort"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy"}}, "audio"),
        ({"logprobs": 3}, "logprobs"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize"),
        ({"chat_template_kwargs": {"conversations": "x"}}, "chat_template_kwargs.conversations"),
        ({"chat_template_kwargs": {"a": ["\ud800"]}}, "chat_template_kwargs"),
        ({"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]}, "messages.0.tool_calls.0.id"),
        ({"messages": [{"role": "user", "content": [0] * 1000}] * 300}, "messages.0.content.0"),
        ({"logit_bias": {f"x{token}": "" for token in range(60_000)}}, "logit_bias"),
        ({"chat_template_kwargs": {"a": nested(900)}}, "chat_template_kwargs"),
        ({"return_tokens_as_token_ids": True}, "return_tokens_as_token_ids"),
    ],
)
def test_wrong_fields_of_a_chat(http: httpx.Client, engine: ScriptedEngine, fields: dict[str, Any], param: str) -> None:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x"}], **fields}
    response = http.post(CHAT, content=json.dumps(body), headers={"content-type": "application/json"})
    assert failure(response, 400)["param"] == param
    assert engine.requests == []


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b"\xff", b'"text"', b"[" * 100_000, b'{"n": 1' + b"0" * 5000 + b"}"),
        b'{"model": "tiny", "prompt": "x", "temperature": NaN}',
    ],
)
def test_bodies_that_are_not_a_json_object(http: httpx.Client, body: bytes) -> None:
    failure(http.post(COMPLETIONS, content=body, headers={"content-type": "application/json"}), 400)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            '{"prompt": "é"}'.encode("latin-1"),
            "the body is not UTF-8, as JSON must be: invalid continuation byte at byte 12",
        ),
        (b"[" * 100_000, "the body is nested too deeply"),
        (b'{"seed": 1' + b"0" * 5000 + b"}", "the body has a number of more than 4300 digits"),
        (b'{"seed": }', "the body is not JSON: Expecting value"),
    ],
)
def test_a_body_that_cannot_be_read_is_refused_with_the_reason(http: httpx.Client, body: bytes, words: str) -> None:
    refused = http.post(COMPLETIONS, content=body, headers={"content-type": "application/json"})
    assert failure(refused, 400)["message"] == words


def test_a_compressed_body_is_refused_as_such(http: httpx.Client, engine: ScriptedEngine) -> None:
    body = json.dumps({"model": MODEL, "prompt": "x"}).encode()
    for encoding, content in (("gzip", gzip.compress(body)), ("br", body), ("identity, gzip", body)):
        headers = {"content-type": "application/json", "content-encoding": encoding}
        error = failure(http.post(COMPLETIONS, content=content, headers=headers), 415)
        assert error["type"] == "invalid_request_error"
        assert error["message"] == f"the body is encoded as {encoding}; send it plain, without Content-Encoding"
    engine.say("a")
    for encoding in ("", "Identity"):
        headers = {"content-type": "application/json", "content-encoding": encoding}
        assert http.post(COMPLETIONS, content=body, headers=headers).status_code == 200


def test_an_empty_body_says_so(http: httpx.Client) -> None:
    error = failure(http.post(COMPLETIONS, content=b"", headers={"content-type": "application/json"}), 400)
    assert (error["param"], error["message"].partition(":")[0]) == (
        None,
        "the body must be a JSON object, sent as application/json",
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"messages": [{"role": "user", "content": [0] * 1000}] * 400},
        {"messages": [0] * 4000},
        {"stop": [0] * 100_000},
        {"stop_token_ids": [-1] * 100_000},
        {"logit_bias": {f"x{token}": "" for token in range(60_000)}},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_body_that_is_wrong_everywhere_is_not_described_everywhere(wrong: dict[str, Any]) -> None:
    """That would take seconds, in which nobody else is served."""
    with pytest.raises(ValidationError) as caught:
        ChatBody.model_validate({"model": MODEL, "messages": [{"role": "user", "content": "x"}], **wrong})
    assert caught.value.error_count() <= 4


def test_a_body_that_is_not_declared_as_json(http: httpx.Client) -> None:
    response = http.post(COMPLETIONS, content=b'{"model": "tiny"}', headers={"content-type": "text/plain"})
    assert "application/json" in failure(response, 400)["message"]


@pytest.mark.parametrize(
    ("path", "subject", "param"),
    [
        (COMPLETIONS, {"prompt": "x" * CONTEXT}, "prompt"),
        (COMPLETIONS, {"prompt": "x" * 100, "max_tokens": 29}, "prompt"),
        (CHAT, {"messages": [{"role": "user", "content": "x" * CONTEXT}]}, "messages"),
    ],
)
def test_more_than_the_context(http: httpx.Client, path: str, subject: dict[str, Any], param: str) -> None:
    error = failure(http.post(path, json={"model": MODEL, **subject}), 400)
    assert (error["param"], error["code"]) == (param, "context_length_exceeded")
    assert f"{CONTEXT} tokens" in error["message"]


def test_more_than_the_context_is_told_in_the_words_that_clients_look_for(http: httpx.Client) -> None:
    """LiteLLM, CrewAI and others shorten a conversation, or ask another model, where the message has them."""
    error = failure(http.post(COMPLETIONS, json={"model": MODEL, "prompt": "x" * CONTEXT}), 400)
    assert error["message"].startswith(f"this model's maximum context length is {CONTEXT} tokens")


def test_unknown_models_routes_and_methods(http: httpx.Client) -> None:
    error = failure(http.post(COMPLETIONS, json={"model": "other", "prompt": "x"}), 404)
    assert (error["param"], error["code"]) == ("model", "model_not_found")
    assert failure(http.get("/v1/models/org/other"), 404)["code"] == "model_not_found"
    assert failure(http.get("/v2/anything"), 404)["message"] == "there is no GET /v2/anything"
    assert failure(http.get("/health/"), 404)["type"] == "not_found_error"
    wrong = http.get(COMPLETIONS)
    assert failure(wrong, 405)["type"] == "invalid_request_error"
    assert wrong.headers["allow"] == "POST"


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(("status", "kind"), [(429, "rate_limit_error"), (503, "unavailable_error")])
def test_an_engine_that_takes_no_more(
    http: httpx.Client, engine: ScriptedEngine, streamed: bool, status: int, kind: str
) -> None:
    engine.say("a")
    engine.fail_after, engine.failure = 0, UnavailableError("the queue is full", 2.5, status)
    response = http.post(COMPLETIONS, json={"model": MODEL, "prompt": "x", "n": 3, "stream": streamed})
    assert failure(response, status)["type"] == kind
    assert response.headers["retry-after"] == "3"
    assert {engine.closed.get(timeout=10) for _ in range(3)} == set(engine.requests)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_unforeseen_failure_tells_nothing(http: httpx.Client, engine: ScriptedEngine, streamed: bool) -> None:
    engine.say("a")
    engine.fail_after, engine.failure = 0, RuntimeError("secret")
    response = http.post(COMPLETIONS, json={"model": MODEL, "prompt": "x", "stream": streamed})
    assert "secret" not in failure(response, 500)["message"]


@pytest.mark.parametrize(
    ("error", "kind"), [(UnavailableError("a stage is gone"), "unavailable_error"), (RuntimeError(), "server_error")]
)
def test_a_failure_in_a_stream_is_an_event_and_no_end(
    http: httpx.Client, engine: ScriptedEngine, error: Exception, kind: str
) -> None:
    engine.say("abc")
    engine.fail_after, engine.failure = 2, error
    response = http.post(COMPLETIONS, json={"model": MODEL, "prompt": "x", "stream": True})
    assert response.status_code == 200
    *chunks, last, rest = response.text.split("\n\n")
    assert [json.loads(chunk[6:])["choices"][0]["finish_reason"] for chunk in chunks] == [None, None]
    assert json.loads(last.removeprefix("data: "))["error"]["type"] == kind
    assert rest == ""


def test_while_loading(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.ready = engine.accepting = False
    engine.not_ready_reason = "stage 3 of 4 has not registered"
    for response in (
        http.get("/ready"),
        http.post(COMPLETIONS, json={"model": MODEL, "prompt": "x"}),
        http.post(CHAT, json={"model": MODEL, "messages": [{"role": "user", "content": "x"}], "stream": True}),
    ):
        error = failure(response, 503)
        assert (error["type"], error["message"]) == ("unavailable_error", "stage 3 of 4 has not registered")
        assert int(response.headers["retry-after"]) >= 1
    assert http.get("/health").status_code == 200
    assert http.get("/v1/models").status_code == 200


def test_requests_are_taken_while_a_stage_is_on_its_way_back(http: httpx.Client, engine: ScriptedEngine) -> None:
    """They wait in the engine; only probes are told that the pipeline is not ready."""
    engine.ready, engine.not_ready_reason = False, "stage 3 of 4 is lost"
    engine.script = engine.tokenizer.encode("abc")
    failure(http.get("/ready"), 503)
    assert http.post(COMPLETIONS, json={"model": MODEL, "prompt": "x"}).status_code == 200
