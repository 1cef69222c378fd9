"""Structured output as clients ask for it: what grammar reaches the pipeline, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from draft_service.api import create_app
from draft_service.text import Tokenizer
from pipedec.metrics.requests import RequestMetrics
from pipedec.model.grammar import Grammars
from pipedec.sampling_params import MAX_GRAMMAR
from tests.api.scripted import MODEL, ScriptedEngine, served

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "y": {"type": "integer"}},
    "required": ["x", "y"],
    "additionalProperties": False,
}

UNIQUE = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}


def named(schema: Any, **fields: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "point", "schema": schema, **fields}}


@pytest.fixture(scope="module")
def grammars(tokenizer: Tokenizer) -> Grammars:
    return Grammars(tokenizer.backend, 258)


def fits(grammars: Grammars, tokenizer: Tokenizer, grammar: str, text: str) -> bool:
    """Whether an answer may be this text."""
    matcher = grammars.matcher(grammar, tokenizer.end_tokens)
    matcher.consume(tokenizer.encode(text))
    allowed = matcher.allowed()
    return not matcher.error and allowed is not None and bool(allowed[list(tokenizer.end_tokens)].all())


def ask(http: httpx.Client, path: str, **fields: Any) -> httpx.Response:
    prompt = {"messages": [{"role": "user", "content": "x"}]} if path == CHAT else {"prompt": "x"}
    # Not by httpx, which would refuse half of a surrogate pair.
    body = json.dumps({"model": MODEL, "max_tokens": 30, **prompt, **fields})
    return http.post(path, content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize(
    ("fields", "good", "bad"),
    [
        ({"response_format": {"type": "json_object"}}, '{"a": [1]}', "[1]"),
        ({"response_format": named(POINT, strict=True)}, '{"x": 1, "y": -2}', '{"x": 1}'),
        ({"response_format": named(POINT, strict=None, description="d")}, '{ "x":1,\n"y":2 }', '{"x": 1, "y": "2"}'),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "any"}}}, "{}", "5"),
        ({"response_format": named(UNIQUE)}, "[1, 2]", "[true]"),
        ({"structured_outputs": {"json": POINT}}, '{"x": 1, "y": 2}', "{}"),
        ({"structured_outputs": {"json": json.dumps(POINT)}}, '{"x": 1, "y": 2}', "{}"),
        ({"structured_outputs": {"json_object": True}}, "{}", "x"),
        ({"structured_outputs": {"regex": "a+b?"}}, "aab", "ba"),
        ({"structured_outputs": {"choice": ["yes", 'n"o']}}, 'n"o', "no"),
        ({"structured_outputs": {"grammar": 'root ::= "a" root | "b"'}}, "aab", "aa"),
        ({"structured_outputs": {"grammar": 'start: "a" start | "b"'}}, "aab", "aa"),
        ({"structured_outputs": {"regex": "a"}, "response_format": {"type": "text"}}, "a", "b"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_the_form_reaches_the_pipeline(
    http: httpx.Client,
    engine: ScriptedEngine,
    tokenizer: Tokenizer,
    grammars: Grammars,
    path: str,
    fields: dict[str, Any],
    good: str,
    bad: str,
) -> None:
    engine.say(good)
    assert ask(http, path, **fields, n=2).status_code == 200
    grammar, again = (request.sampling.grammar for request in engine.requests)
    assert grammar == again
    assert fits(grammars, tokenizer, grammar, good)
    assert not fits(grammars, tokenizer, grammar, bad)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"response_format": None, "structured_outputs": None},
        {"response_format": {"type": "text"}, "structured_outputs": {}},
        {"structured_outputs": {"json_object": False, "regex": None}},
    ],
)
def test_asking_for_no_form_leaves_answers_free(
    http: httpx.Client, engine: ScriptedEngine, fields: dict[str, Any]
) -> None:
    engine.say("hi")
    assert ask(http, CHAT, **fields).status_code == 200
    assert engine.requests[0].sampling.grammar == ""


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"response_format": "json"}, "response_format", ""),
        ({"response_format": {}}, "response_format.type", "type"),
        ({"response_format": {"type": "xml"}}, "response_format.type", "'text', 'json_object', 'json_schema'"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "required"),
        ({"response_format": named(POINT, name=5)}, "response_format.json_schema.name", "string"),
        ({"response_format": named("{}")}, "response_format.json_schema.schema", "dictionary"),
        ({"response_format": named({"type": "strin"})}, "response_format.json_schema.schema", "Invalid type: strin"),
        ({"response_format": named({"const": "\ud800"})}, "response_format.json_schema.schema", "surrogates"),
        ({"response_format": named({"const": "x" * MAX_GRAMMAR})}, "response_format.json_schema.schema", "too long"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex", "unclosed group"),
        ({"structured_outputs": {"regex": "a?" * 16_000}}, "structured_outputs.regex", "too complex"),
        ({"structured_outputs": {"grammar": "\n" * 60_000}}, "structured_outputs.grammar", "too complex"),
        ({"structured_outputs": {"grammar": "\n" * 100_000}}, "structured_outputs.grammar", "too long"),
        ({"response_format": named({"maximum": 2**64})}, "response_format.json_schema.schema", "at most 64 bits"),
        ({"structured_outputs": {"json": {"minimum": -(2**63) - 1}}}, "structured_outputs.json", "at most 64 bits"),
        ({"structured_outputs": {"json": "[" * 100_000}}, "structured_outputs.json", "not JSON"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json", "not JSON"),
        ({"structured_outputs": {"json": "5"}}, "structured_outputs.json", "dictionary"),
        (
            {"structured_outputs": {"disable_any_whitespace": True}},
            "structured_outputs.disable_any_whitespace",
            "Not sup",
        ),
        ({"response_format": {"type": "json_object", "schema": {}}}, "response_format.schema", "Not supported"),
        ({"response_format": named(UNIQUE, strict=True)}, "response_format.json_schema.schema", "uniqueItems"),
        ({"structured_outputs": {"json": UNIQUE}}, "structured_outputs.json", "uniqueItems"),
        ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex", "string"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice", "at least 1"),
        ({"structured_outputs": {"choice": ["a", 5]}}, "structured_outputs.choice.1", "string"),
        ({"structured_outputs": {"grammar": "root ::= ("}}, "structured_outputs.grammar", "GBNF"),
        ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs.structural_tag", "Not supported"),
        ({"structured_outputs": {"regex": "a", "choice": ["a"]}}, "structured_outputs.choice", "one form"),
        (
            {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
            "structured_outputs.regex",
            "response_format and structured_outputs.regex cannot be combined",
        ),
        ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos", "ends with an end token"),
        ({"response_format": {"type": "json_object"}, "min_tokens": 3}, "min_tokens", "shorter"),
        ({"guided_json": {}}, "guided_json", "Not supported"),
    ],
)
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_what_cannot_be_followed_is_refused(
    http: httpx.Client, engine: ScriptedEngine, path: str, fields: dict[str, Any], param: str, message: str
) -> None:
    response = ask(http, path, **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert message in error["message"]
    assert len(error["message"]) < 1300
    assert engine.requests == []


def test_a_nested_schema_is_refused_like_any_other(http: httpx.Client, engine: ScriptedEngine) -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        schema = {"type": "array", "items": schema}
    error = ask(http, CHAT, response_format=named(schema)).json()["error"]
    assert "recursion limit" in error["message"]
    assert error["param"] == "response_format.json_schema.schema"


@pytest.fixture(scope="module")
def bare(tokenizer: Tokenizer) -> Iterator[httpx.Client]:
    """An endpoint whose tokenizer llguidance could not read."""
    app = create_app(ScriptedEngine(tokenizer, script=[5]), tokenizer, RequestMetrics(CollectorRegistry(), MODEL))
    with served(app) as server, httpx.Client(base_url=f"http://127.0.0.1:{server.port}") as client:
        yield client


def test_without_a_tokenizer_for_it_there_is_no_structured_output(bare: httpx.Client) -> None:
    response = ask(bare, CHAT, response_format={"type": "json_object"})
    assert response.status_code == 400
    assert "tokenizer cannot be used" in response.json()["error"]["message"]
    assert ask(bare, CHAT).status_code == 200


class Point(BaseModel):
    x: int
    y: int


def test_openais_client_parses_into_a_model(
    port: int, engine: ScriptedEngine, tokenizer: Tokenizer, grammars: Grammars
) -> None:
    engine.say('{"x": 3, "y": 4}')
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none") as client:
        reply = client.chat.completions.parse(
            model=MODEL, messages=[{"role": "user", "content": "x"}], response_format=Point
        )
    assert reply.choices[0].message.parsed == Point(x=3, y=4)
    assert fits(grammars, tokenizer, engine.requests[0].sampling.grammar, '{"x": 3, "y": 4}')
    assert not fits(grammars, tokenizer, engine.requests[0].sampling.grammar, '{"x": 3}')


def test_the_grammars_tokens_are_the_models(grammars: Grammars, tokenizer: Tokenizer) -> None:
    allowed = grammars.matcher('start: "!"', tokenizer.end_tokens).allowed()
    assert allowed is not None
    assert [tokenizer.token_text(token) for token in np.flatnonzero(allowed)] == ["!"]
