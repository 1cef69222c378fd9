"""OpenAI's Responses, as OpenAI's own client asks for them and understands the replies."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest
from openai.types.responses import Response, ResponseStreamEvent, ResponseTextDeltaEvent
from pydantic import BaseModel, TypeAdapter

from draft_service.api.responses.reply_types import ResponseEvent, ResponseResource
from draft_service.generation import RequestStatistics
from pipedec.errors import RequestError, UnavailableError
from tests.api.offered import prompt
from tests.api.scripted import CONTEXT, MODEL, ScriptedEngine

RESPONSES = "/v1/responses"
SCORED: Any = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
OPENING = ["response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"]
ENDING = ["response.output_text.done", "response.content_part.done", "response.output_item.done"]


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0) as client:
        yield client


def streamed(client: openai.OpenAI, **fields: Any) -> list[ResponseStreamEvent]:
    """The events, each as the client's own types want it, and numbered."""
    asked = {"model": MODEL, "input": "hi", **fields}
    events = list(client.responses.create(**asked, stream=True))
    for each in events:
        type(each).model_validate(each.to_dict())
    assert [each.sequence_number for each in events] == list(range(len(events)))
    return events


def last(events: list[ResponseStreamEvent], type: str) -> Response:
    """The response in the last event, which is of this type."""
    assert events[-1].type == type
    response = getattr(events[-1], "response", None)
    assert isinstance(response, Response)
    return response


def test_a_text(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("Grüße 🙂")
    engine.statistics = RequestStatistics(hits=3, misses=1, steps=8, reused=2)
    response = client.responses.create(
        model=MODEL, input="hi", instructions="Be brief.", metadata={"for": "me"}, temperature=0.5, store=True, user="x"
    )
    Response.model_validate(response.to_dict())
    assert (response.object, response.model, response.status) == ("response", MODEL, "completed")
    assert response.output_text == "Grüße 🙂"
    assert (response.error, response.incomplete_details, response.metadata) == (None, None, {"for": "me"})
    assert (response.temperature, response.top_p, response.instructions) == (0.5, 1.0, "Be brief.")
    assert response.to_dict()["store"] is False
    assert prompt(engine) == "system\nBe brief.user\nhiassistant\n"
    usage = response.usage
    assert usage is not None
    generated = len("Grüße 🙂".encode()) + 1
    assert (usage.input_tokens, usage.output_tokens) == (len(engine.requests[0].prompt), generated)
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert (usage.input_tokens_details.cached_tokens, usage.output_tokens_details.reasoning_tokens) == (2, 0)
    assert response.to_dict()["pipedec"] == {"hit_rate": 0.75, "tokens_per_step": 0.5, "steps": 8}


def test_a_text_as_it_comes(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("Grüße 🙂")
    events = streamed(client)
    types = [each.type for each in events]
    assert types[:4] == OPENING
    assert types[-4:] == [*ENDING, "response.completed"]
    assert set(types[4:-4]) == {"response.output_text.delta"}
    assert "".join(each.delta for each in events if isinstance(each, ResponseTextDeltaEvent)) == "Grüße 🙂"
    response = last(events, "response.completed")
    assert response.output_text == "Grüße 🙂"
    assert {each.item_id for each in events if isinstance(each, ResponseTextDeltaEvent)} == {response.output[0].id}
    assert response.usage is not None


def test_the_clients_own_stream_puts_it_together(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("one after the other")
    with client.responses.stream(model=MODEL, input="hi") as stream:
        snapshots = [each.snapshot for each in stream if each.type == "response.output_text.delta"]
        assert stream.get_final_response().output_text == "one after the other"
    assert snapshots[-1] == "one after the other"


@pytest.mark.parametrize("scored", [{}, SCORED])
@pytest.mark.parametrize("statistics", [None, RequestStatistics(2, 1, 4)])
def test_replies_are_what_the_document_says(
    http: httpx.Client, engine: ScriptedEngine, statistics: RequestStatistics | None, scored: dict[str, Any]
) -> None:
    engine.say("Grüße")
    engine.statistics = statistics
    asked = {"model": MODEL, "input": "hi", "text": {"format": {"type": "text"}}, **scored}
    answer = http.post(RESPONSES, json=asked)
    TypeAdapter(ResponseResource).validate_json(answer.text, extra="forbid")
    for limit in (3, None):
        streamed = http.post(RESPONSES, json=asked | {"stream": True, "max_output_tokens": limit}).text
        *events, rest = streamed.split("\n\n")
        assert rest == ""
        for each in events:
            name, data = each.split("\n")
            event = TypeAdapter(ResponseEvent).validate_json(data.removeprefix("data: "), extra="forbid")
            assert name == f"event: {event['type']}"


def test_what_the_limit_cuts_is_incomplete(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("abcdefgh")
    whole = client.responses.create(model=MODEL, input="hi", max_output_tokens=5)
    for response in (whole, last(streamed(client, max_output_tokens=5), "response.incomplete")):
        assert (response.status, response.output_text) == ("incomplete", "abcde")
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"
        assert response.output[0].type == "message"
        assert response.output[0].status == "incomplete"
        assert (response.max_output_tokens, response.to_dict()["completed_at"]) == (5, None)


@pytest.mark.parametrize("text", ["", "é"])
def test_log_probabilities(client: openai.OpenAI, engine: ScriptedEngine, text: str) -> None:
    engine.say(text)
    whole = client.responses.create(model=MODEL, input="hi", **SCORED)
    for response in (whole, last(streamed(client, **SCORED), "response.completed")):
        assert response.output[0].type == "message"
        (part,) = response.output[0].content
        assert part.type == "output_text"
        assert bytes(byte for token in part.logprobs or () for byte in token.bytes) == text.encode()
        assert [len(token.top_logprobs) for token in part.logprobs or ()] == [2] * len(text.encode())
        assert response.top_logprobs == 2


class Point(BaseModel):
    x: int
    y: int


def test_the_client_parses_into_a_model(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say('{"x": 3, "y": 4}')
    parsed = client.responses.parse(model=MODEL, input="hi", text_format=Point)
    assert parsed.output_parsed == Point(x=3, y=4)
    assert '"required":["x","y"]' in engine.requests[0].sampling.grammar
    assert parsed.text is not None
    assert parsed.text.format is not None
    assert parsed.text.format.type == "json_schema"
    with client.responses.stream(model=MODEL, input="hi", text_format=Point) as stream:
        assert stream.get_final_response().output_parsed == Point(x=3, y=4)


def test_any_json_object(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("{}")
    client.responses.create(model=MODEL, input="hi", text={"format": {"type": "json_object"}})
    assert engine.requests[0].sampling.grammar


CONVERSATION: list[Any] = [
    {"role": "developer", "content": "Be kind."},
    {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
    {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "gAAAA"},
    {
        **{"type": "message", "id": "msg_1", "role": "assistant", "status": "completed"},
        "content": [{"type": "output_text", "text": "c", "annotations": [], "logprobs": []}],
    },
    {"type": "message", "role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
    {"type": "message", "role": "user", "content": "d", "status": None},
]


def test_a_conversation(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("x")
    client.responses.create(model=MODEL, input=CONVERSATION, instructions="Be brief.")
    said = "system\nBe brief.\n\nBe kind.user\na\nbassistant\ncassistant\nNo.user\ndassistant\n"
    assert prompt(engine) == said, "templates take one system message"


def test_an_answer_goes_back_as_it_came(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("First.")
    response = client.responses.create(model=MODEL, input="hi")
    before = prompt(engine)
    again: Any = [{"role": "user", "content": "hi"}, *response.output, {"role": "user", "content": "more"}]
    client.responses.create(model=MODEL, input=again)
    assert prompt(engine) == before + "First.user\nmoreassistant\n"


def test_sampling_reaches_the_engine(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("abcdef")
    extra = {"seed": 7, "top_k": 5, "min_p": 0.1, "stop": "de", "chat_template_kwargs": {"suffix": "!"}}
    response = client.responses.create(model=MODEL, input="hi", temperature=0, top_p=0.9, extra_body=extra)
    assert (response.output_text, response.status) == ("abc", "completed")
    (request,) = engine.requests
    assert (request.sampling.temperature, request.sampling.top_p, request.sampling.top_k) == (0, 0.9, 5)
    assert (request.sampling.min_p, request.sampling.seed) == (0.1, 7)
    assert prompt(engine).endswith("assistant\n!")
    assert len(request.prompt) + request.max_tokens == CONTEXT


def test_what_asks_for_nothing_passes(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    """As the Agents SDK and Codex send it."""
    engine.say("x")
    client.responses.create(
        model=MODEL,
        input="hi",
        include=["reasoning.encrypted_content"],
        reasoning={"effort": "low", "summary": "auto"},
        text={"verbosity": "low"},
        truncation="disabled",
        background=False,
        previous_response_id=None,
        max_tool_calls=3,
        parallel_tool_calls=True,
        prompt_cache_key="k",
        service_tier="auto",
        tools=[],
        tool_choice="auto",
        store=False,
        stream_options={"include_obfuscation": False},
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnavailableError("a stage is gone"), "server_error"),
        (RequestError("the grammar ends here", code="unfinishable"), "invalid_prompt"),
        (RuntimeError("secret"), "server_error"),
    ],
)
def test_a_stream_that_breaks_ends_with_the_failure(
    client: openai.OpenAI, engine: ScriptedEngine, error: Exception, code: str
) -> None:
    engine.say("abc")
    engine.fail_after, engine.failure = 2, error
    response = last(streamed(client), "response.failed")
    assert (response.status, response.output_text) == ("failed", "ab")
    assert response.error is not None
    assert response.error.code == code
    assert "secret" not in response.error.message
    assert response.output[0].type == "message"
    assert response.output[0].status == "incomplete"


@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_before_it_begins_has_a_status(client: openai.OpenAI, engine: ScriptedEngine, stream: bool) -> None:
    engine.say("abc")
    engine.fail_after, engine.failure = 0, UnavailableError("the queue is full", 3, 429)
    with pytest.raises(openai.RateLimitError, match="the queue is full"):
        client.responses.create(model=MODEL, input="hi", stream=stream)


def test_a_client_that_goes_away_ends_its_request(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("abc")
    engine.hold_after = 1
    with client.responses.create(model=MODEL, input="hi", stream=True) as stream:
        assert next(iter(stream)).type == "response.created"
        engine.held.get(timeout=30)
        assert engine.closed.empty()
    assert engine.closed.get(timeout=30) == engine.requests[0]


def test_nothing_is_stored(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("x")
    response = client.responses.create(model=MODEL, input="hi")
    with pytest.raises(openai.NotFoundError, match="none is stored"):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.NotFoundError, match="none is stored"):
        client.responses.delete(response.id)


def test_the_document_describes_the_route(http: httpx.Client) -> None:
    document = http.get("/openapi.json").json()
    content = document["paths"][RESPONSES]["post"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/ResponseResource"}
    assert '"#/components/schemas/ResponseEvent"' in json.dumps(content["text/event-stream"])
    schemas = document["components"]["schemas"]
    assert set(schemas["ResponsesBody"]["required"]) == {"model", "input"}
    assert set(schemas["ResponseEvent"]["discriminator"]["mapping"]) >= {*OPENING, *ENDING, "response.failed"}
