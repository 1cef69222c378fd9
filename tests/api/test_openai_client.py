"""OpenAI's own client, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

from pipedec.errors import RequestError, UnavailableError, UnfinishableError
from tests.api.scripted import MODEL, ScriptedEngine


@pytest.fixture(scope="module")
def client(port: int) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0) as client:
        yield client


def test_chat(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("Grüße 🙂")
    answer = client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": "hi"}], logprobs=True, top_logprobs=2, seed=7
    )
    choice = answer.choices[0]
    assert (answer.object, answer.model, choice.finish_reason) == ("chat.completion", MODEL, "stop")
    assert choice.message.content == "Grüße 🙂"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len("Grüße 🙂".encode()) + 1
    assert choice.logprobs is not None
    assert choice.logprobs.content is not None
    assert bytes(b for each in choice.logprobs.content for b in each.bytes or ()) == "Grüße 🙂".encode()
    assert [len(each.top_logprobs) for each in choice.logprobs.content] == [2] * len("Grüße 🙂".encode())


def test_chat_stream(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("Grüße 🙂")
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "hi"}],
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Grüße 🙂"
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + ["stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None


def test_completion(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("ab", end=False)
    answer = client.completions.create(model=MODEL, prompt=["x", "yz"], n=2, max_tokens=3, logprobs=1)
    assert [(choice.index, choice.text, choice.finish_reason) for choice in answer.choices] == [
        (index, "aba", "length") for index in range(4)
    ]
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 12)
    assert answer.choices[3].logprobs is not None
    assert answer.choices[3].logprobs.tokens == ["a", "b", "a"]
    assert answer.choices[3].logprobs.text_offset == [0, 1, 2]


def test_completion_stream(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("ab")
    chunks = list(client.completions.create(model=MODEL, prompt="x", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "ab"


def test_asynchronous_streams_side_by_side(port: int, engine: ScriptedEngine) -> None:
    engine.say("one after the other")

    async def read(client: openai.AsyncOpenAI) -> str:
        stream = await client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "hi"}], stream=True
        )
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def read_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any") as client:
            return await asyncio.gather(*(read(client) for _ in range(20)))

    assert asyncio.run(read_all()) == ["one after the other"] * 20


def test_errors_have_the_classes_that_clients_catch(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="other", prompt="x")
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as wrong:
        client.completions.create(model=MODEL, prompt="x", temperature=-1)
    assert wrong.value.param == "temperature"
    engine.say("a")
    engine.fail_after, engine.failure = 0, UnavailableError("the queue is full", 3, 429)
    with pytest.raises(openai.RateLimitError) as full:
        client.completions.create(model=MODEL, prompt="x")
    assert full.value.response.headers["retry-after"] == "3"


def test_a_request_that_would_fail_again_is_not_asked_again(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    """The client does that by itself after any other 500."""
    engine.say("a")
    engine.fail_after, engine.failure = 0, UnfinishableError("the pipeline breaks down")
    with pytest.raises(openai.InternalServerError, match="breaks down") as failed:
        client.with_options(max_retries=3).completions.create(model=MODEL, prompt="x")
    assert failed.value.code == "unfinishable"
    assert len(engine.requests) == 1


def test_an_answer_that_its_grammar_allows_no_further_token_is_a_mistake_in_the_request(
    client: openai.OpenAI, engine: ScriptedEngine
) -> None:
    engine.say("ab")
    engine.fail_after = 1
    engine.failure = RequestError("the answer's grammar cannot be followed any further", code="unfinishable")
    with pytest.raises(openai.BadRequestError, match="grammar") as refused:
        client.with_options(max_retries=3).completions.create(model=MODEL, prompt="x")
    assert refused.value.code == "unfinishable"
    assert len(engine.requests) == 1
    with (
        pytest.raises(openai.APIError, match="grammar"),
        client.completions.create(model=MODEL, prompt="x", stream=True) as stream,
    ):
        list(stream)


def test_a_request_that_takes_too_long_is_not_asked_again(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    """The client does that by itself after any other 504: the pipeline would work as long once more, and in vain."""
    engine.say("a")
    engine.fail_after, engine.failure = 0, UnavailableError("the request took longer than 600 s", status=504)
    with pytest.raises(openai.InternalServerError, match="longer than 600 s") as expired:
        client.with_options(max_retries=3).completions.create(model=MODEL, prompt="x")
    assert (expired.value.status_code, expired.value.type) == (504, "timeout_error")
    assert "retry-after" not in expired.value.response.headers
    assert len(engine.requests) == 1


def test_a_stream_that_breaks_raises(client: openai.OpenAI, engine: ScriptedEngine) -> None:
    engine.say("abc")
    engine.fail_after, engine.failure = 2, UnavailableError("a stage is gone")
    stream = client.completions.create(model=MODEL, prompt="x", stream=True)
    choices = [next(stream).choices[0].to_dict() for _ in range(2)]
    assert [(choice["text"], choice["finish_reason"]) for choice in choices] == [("a", None), ("b", None)]
    with pytest.raises(openai.APIError, match="a stage is gone"):
        next(stream)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "pipedec"
