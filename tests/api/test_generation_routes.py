"""What a request asks of the engine, and the shape of what comes back."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry
from pydantic import TypeAdapter

from draft_service.api import create_app, reply_types
from draft_service.generation import RequestStatistics
from pipedec.metrics.requests import RequestMetrics
from pipedec.sampling_params import SamplingParams
from tests.api.scripted import CONTEXT, MODEL, ScriptedEngine, byte_tokenizer, served

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
FORBID = {"extra": "forbid"}


def asked(path: str, **fields: Any) -> dict[str, Any]:
    subject = {"messages": HI} if path == CHAT else {"prompt": "hi"}
    return {"model": MODEL, **subject, **fields}


def post(http: httpx.Client, path: str, **fields: Any) -> Any:
    response = http.post(path, json=asked(path, **fields))
    assert response.status_code == 200, response.text
    return response.json()


def stream(http: httpx.Client, path: str, **fields: Any) -> list[Any]:
    """The chunks; every line must be an event's, and `[DONE]` the last."""
    response = http.post(path, json=asked(path, stream=True, **fields))
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    *chunks, done, rest = response.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]


@pytest.mark.parametrize(
    ("path", "model", "chunk_model"),
    [
        (CHAT, reply_types.ChatCompletion, reply_types.ChatChunk),
        (COMPLETIONS, reply_types.Completion, reply_types.CompletionChunk),
    ],
)
@pytest.mark.parametrize("statistics", [None, RequestStatistics(2, 1, 4)])
def test_replies_are_what_the_document_says(
    http: httpx.Client,
    engine: ScriptedEngine,
    path: str,
    model: Any,
    chunk_model: Any,
    statistics: RequestStatistics | None,
) -> None:
    engine.say("Grüße")
    engine.statistics = statistics
    scores = {"logprobs": True, "top_logprobs": 3} if path == CHAT else {"logprobs": 3}
    for fields in ({}, {"n": 2, **scores}):
        TypeAdapter(model, config=None).validate_json(json.dumps(post(http, path, **fields)), extra="forbid")
        for usage in ({}, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}):
            for chunk in stream(http, path, **fields, **usage):
                TypeAdapter(chunk_model).validate_json(json.dumps(chunk), extra="forbid")


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
def test_usage_comes_only_when_asked_for(http: httpx.Client, engine: ScriptedEngine, path: str) -> None:
    engine.say("ab")
    engine.statistics = RequestStatistics(hits=3, misses=1, steps=8, reused=1)
    prompt = len(engine.tokenizer.encode_chat(HI, {})) if path == CHAT else 2
    total = {
        "prompt_tokens": prompt,
        "completion_tokens": 3,
        "total_tokens": prompt + 3,
        "prompt_tokens_details": {"cached_tokens": 1},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
    speculation = {"hit_rate": 0.75, "tokens_per_step": 0.5, "steps": 8}

    plain = stream(http, path)
    assert all(chunk["choices"] and "usage" not in chunk and "pipedec" not in chunk for chunk in plain)
    *chunks, last = stream(http, path, stream_options={"include_usage": True})
    assert all(chunk["choices"] and chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"], last["pipedec"]) == ([], total, speculation)
    assert {(chunk["id"], chunk["created"]) for chunk in chunks} == {(last["id"], last["created"])}
    *chunks, last = stream(http, path, stream_options={"include_usage": True, "continuous_usage_stats": True})
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks][-3:] == [1, 2, 3]
    body = post(http, path)
    assert (body["usage"], body["pipedec"]) == (total, speculation)


def test_statistics_are_summed_over_choices(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("ab")
    engine.statistics = RequestStatistics(hits=1, misses=3, steps=8)
    assert post(http, COMPLETIONS, n=3)["pipedec"] == {"hit_rate": 0.25, "tokens_per_step": 0.5, "steps": 24}


def test_cached_tokens_are_counted_once_for_each_prompt(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("ab")
    engine.statistics = RequestStatistics(hits=1, misses=3, steps=8, reused=2)
    usage = post(http, COMPLETIONS, prompt=[[1, 2, 3], [4, 5, 6, 7]], n=2)["usage"]
    assert usage["prompt_tokens"] == 7
    assert usage["prompt_tokens_details"] == {"cached_tokens": 4}


def test_a_chat_stream_opens_with_the_role_of_every_choice(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("a")
    first, second, *rest = (chunk["choices"][0] for chunk in stream(http, CHAT, n=2))
    assert [(each["index"], each["delta"]) for each in (first, second)] == [
        (0, {"role": "assistant", "content": ""}),
        (1, {"role": "assistant", "content": ""}),
    ]
    for index in (0, 1):
        told = [(each["delta"], each["finish_reason"]) for each in rest if each["index"] == index]
        assert told == [({"content": "a"}, None), ({}, "stop")]


def test_sampling_reaches_the_engine(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("a")
    sampling: dict[str, Any] = {
        "temperature": 0.5,
        "top_p": 0.9,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": -0.2,
        "min_tokens": 1,
    }
    post(http, COMPLETIONS, **sampling, top_k=5, seed=-1, n=2, logit_bias={"7": 1.5}, stop_token_ids=[9], logprobs=4)
    rest: dict[str, Any] = {"top_k": 5, "logit_bias": ((7, 1.5),), "end_tokens": (9, 257), "logprobs": 4}
    seeds = (2**63 - 1, 0)
    assert [each.sampling for each in engine.requests] == [
        SamplingParams(**sampling, **rest, seed=seed) for seed in seeds
    ]
    assert engine.requests[0].end_tokens == {9, 257}


def test_defaults_are_openais(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("a")
    for _ in range(2):
        post(http, COMPLETIONS, temperature=None, stop=None, max_tokens=None)
    first, second = engine.requests
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.logprobs) == (1.0, 1.0, None)
    assert (first.max_tokens, first.end_tokens) == (16, frozenset({257}))
    assert first.sampling.seed != second.sampling.seed
    post(http, CHAT)
    assert len(engine.requests[-1].prompt) + engine.requests[-1].max_tokens == CONTEXT
    post(http, COMPLETIONS, prompt="x" * (CONTEXT - 1))
    assert engine.requests[-1].max_tokens == 1


@pytest.mark.parametrize(
    ("fields", "max_tokens"),
    [({"max_tokens": 5}, 5), ({"max_completion_tokens": 6}, 6), ({"max_tokens": 5, "max_completion_tokens": 6}, 6)],
)
def test_max_tokens(http: httpx.Client, engine: ScriptedEngine, fields: dict[str, int], max_tokens: int) -> None:
    engine.say("abcdefgh")
    body = post(http, CHAT, **fields)
    assert (body["choices"][0]["message"]["content"], body["choices"][0]["finish_reason"]) == (
        "abcdefgh"[:max_tokens],
        "length",
    )


def test_top_p_zero_is_taken_as_clients_send_it(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("x")
    post(http, CHAT, top_p=0)
    assert engine.requests[-1].sampling.top_p == 0


def test_ignore_eos(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("ab")
    choice = post(http, COMPLETIONS, ignore_eos=True, max_tokens=5)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("abab", "length")
    assert engine.requests[-1].end_tokens == frozenset()
    (stop,) = engine.tokenizer.encode("b")
    choice = post(http, COMPLETIONS, ignore_eos=True, stop_token_ids=[stop])["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("a", "stop")


@pytest.mark.parametrize("stop", ["def", ["xyz", "def"], [*"1234567", "def"]])
def test_stop_strings_end_the_request_in_the_engine(http: httpx.Client, engine: ScriptedEngine, stop: object) -> None:
    engine.say("abcdefghi")
    choice = post(http, COMPLETIONS, stop=stop, logprobs=0)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("abc", "stop")
    assert choice["logprobs"]["text_offset"] == [0, 1, 2]
    assert engine.closed.get(timeout=10) == engine.requests[-1]
    choices = [chunk["choices"][0] for chunk in stream(http, COMPLETIONS, stop=stop)]
    assert [(each["text"], each["finish_reason"]) for each in choices] == [
        *(("a", None), ("b", None), ("c", None)),
        ("", "stop"),
    ]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [
        ("ab", ["ab"]),
        (["ab", "c"], ["ab", "c"]),
        ([65, 66], [[65, 66]]),
        ([[65, 66], [67]], [[65, 66], [67]]),
    ],
)
def test_prompts(http: httpx.Client, engine: ScriptedEngine, prompt: object, prompts: list[Any]) -> None:
    engine.say("x")
    body = post(http, COMPLETIONS, prompt=prompt, n=2)
    tokens = [engine.tokenizer.encode(each) if isinstance(each, str) else each for each in prompts]
    assert [list(each.prompt) for each in engine.requests] == [each for each in tokens for _ in range(2)]
    assert [choice["index"] for choice in body["choices"]] == list(range(2 * len(prompts)))
    assert body["usage"]["prompt_tokens"] == sum(map(len, tokens))


def test_messages(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("x")
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": None}]
    messages = [{"role": "developer", "content": "be"}, {"role": "user", "content": parts, "name": "Ann"}]
    post(http, CHAT, messages=messages, chat_template_kwargs={"suffix": "<think>"})
    prompt = b"".join(map(engine.tokenizer.token_bytes, engine.requests[-1].prompt))
    assert prompt == b"<|start|>system\nbe<|end|><|start|>user\na\nb<|end|><|start|>assistant\n<think>"


def test_system_messages_in_a_row_are_one_for_a_template_that_takes_one(
    http: httpx.Client, engine: ScriptedEngine
) -> None:
    """Pydantic AI has one for its instructions and others for its system prompts."""
    engine.say("x")
    roles = ("system", "developer", "user")
    post(http, CHAT, messages=[{"role": role, "content": role} for role in roles])
    prompt = b"".join(map(engine.tokenizer.token_bytes, engine.requests[-1].prompt))
    assert prompt.startswith(b"<|start|>system\nsystem\n\ndeveloper<|end|><|start|>user\nuser<|end|>")


@pytest.mark.parametrize(
    ("fields", "effort"), [({}, b"high"), ({"chat_template_kwargs": {"reasoning_effort": "low"}}, b"low")]
)
def test_the_reasoning_effort_is_the_templates(fields: dict[str, Any], effort: bytes) -> None:
    thoughtful = byte_tokenizer("{{ messages[0]['content'] }} {{ reasoning_effort }}")
    engine = ScriptedEngine(thoughtful)
    engine.say("x")
    with (
        served(create_app(engine, thoughtful, RequestMetrics(CollectorRegistry(), MODEL))) as server,
        httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as client,
    ):
        post(client, CHAT, reasoning_effort="high", **fields)
    assert b"".join(map(thoughtful.token_bytes, engine.requests[-1].prompt)) == b"hi " + effort


def test_a_long_prompt_is_tokenised_all_the_same(http: httpx.Client, engine: ScriptedEngine) -> None:
    response = http.post(COMPLETIONS, json=asked(COMPLETIONS, prompt="x" * 10_000))
    assert response.status_code == 400
    assert "has 10000" in response.json()["error"]["message"]


def test_harmless_and_unknown_fields_pass(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("x")
    post(http, CHAT, user="me", frobnicate=[1], store=False, metadata=None, service_tier="auto", functions=None)
    post(http, CHAT, tools=[], tool_choice="none", response_format={"type": "text"})
    post(http, CHAT, documents=[], add_special_tokens=False, grammar=None, return_token_ids=False)
    post(http, COMPLETIONS, suffix=None, echo=False, best_of=2, n=2)
    post(http, COMPLETIONS, add_special_tokens=True, typical_p=1, logits_processors=[])


def test_log_probabilities_of_a_chat(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("é")
    (choice,) = post(http, CHAT, logprobs=True, top_logprobs=1)["choices"]
    first = engine.tokenizer.token_bytes(0)
    top = [{"token": first.decode(), "logprob": -0.5, "bytes": list(first)}]
    assert choice["logprobs"] == {
        "content": [
            {"token": "\ufffd", "logprob": -0.25, "bytes": [byte], "top_logprobs": top} for byte in "é".encode()
        ],
        "refusal": None,
    }
    (choice,) = post(http, CHAT)["choices"]
    assert choice["logprobs"] is None


def test_log_probabilities_of_a_completion(http: httpx.Client, engine: ScriptedEngine) -> None:
    """Tokens that are no text have names of their own, and the chosen one is among the likeliest."""
    engine.say("é")
    (choice,) = post(http, COMPLETIONS, logprobs=1)["choices"]
    first, names = engine.tokenizer.token_text(0), [f"bytes:\\x{byte:02x}" for byte in "é".encode()]
    assert choice["text"] == "é"
    assert choice["logprobs"] == {
        "tokens": names,
        "token_logprobs": [-0.25, -0.25],
        "top_logprobs": [{name: -0.25, first: -0.5} for name in names],
        "text_offset": [0, 0],
    }


def test_what_a_client_asks_nothing_of_passes(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("x")
    post(http, CHAT, top_logprobs=0, chat_template_kwargs={"tags": ["a", {"b": None}]})


def test_log_probabilities_of_no_text_are_an_empty_list(http: httpx.Client, engine: ScriptedEngine) -> None:
    engine.say("")
    (choice,) = post(http, CHAT, logprobs=True)["choices"]
    assert choice["logprobs"] == {"content": [], "refusal": None}
    (choice,) = post(http, COMPLETIONS, logprobs=0)["choices"]
    assert choice["logprobs"] == {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
    assert all(each["choices"][0]["logprobs"] is None for each in stream(http, COMPLETIONS, logprobs=0))
