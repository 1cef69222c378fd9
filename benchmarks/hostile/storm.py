"""Many requests at once, right and wrong in any field: each must get an answer that the OpenAPI document foresees."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from typing import Any

import httpx

from benchmarks.hostile.trial import MODEL

SECONDS = 300.0  # until the last answer
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
WEIRD: tuple[Any, ...] = (None, True, -1, 0, 2**70, 1.5, "", "x", "\ud800", [], {}, [[]], [None], {"a": 1})
FIELDS: dict[str, tuple[Any, ...]] = {
    "temperature": (0, 0.7, 2),
    "top_p": (0.1, 1),
    "top_k": (-1, 0, 5),
    "min_p": (0, 0.5),
    "seed": (1, 2**63 - 1),
    "n": (1, 2),
    "max_tokens": (1, 2, 4),
    "min_tokens": (0, 1),
    "stop": ("a", ["b", "cd"]),
    "stream": (True, False),
    "stream_options": ({"include_usage": True},),
    "presence_penalty": (-2, 0.5),
    "frequency_penalty": (-2, 0.5),
    "repetition_penalty": (0.9, 1.2),
    "logit_bias": ({"5": 10}, {"319": -100}),
    "logprobs": (1, True),
    "ignore_eos": (True, False),
    "user": ("somebody",),
    "no_such_field": (1,),
}


def random_body(rng: random.Random, route: str) -> dict[str, Any]:
    """A quarter of them are right in every field."""
    subject: dict[str, Any] = {"prompt": rng.choice(("x", ["x", "yz"], [5, 6, 7]))}
    if route == CHAT:
        subject = {"messages": [{"role": "user", "content": "x"}]}
    body = {"model": MODEL, "max_tokens": 2} | subject
    for name in rng.sample(sorted(FIELDS), rng.randint(0, 5)):
        body[name] = rng.choice(FIELDS[name])
    if rng.random() < 0.8:
        body[rng.choice((*FIELDS, *body))] = rng.choice(WEIRD)
    return body


class Unforeseen(Exception):
    """An answer that is not as the service's own document says."""


def check_answer(response: httpx.Response, documented: dict[str, Any]) -> None:
    """Raises `Unforeseen`. `documented` is what the OpenAPI document says of this operation."""
    status = response.status_code
    content_type = response.headers["content-type"].partition(";")[0]
    foreseen = content_type in documented["responses"].get(str(status), {}).get("content", {})
    if foreseen and status != httpx.codes.OK:
        foreseen = set(response.json()["error"]) == {"message", "type", "param", "code"}
        foreseen &= status not in (429, 503) or int(response.headers["retry-after"]) >= 1
    elif foreseen and content_type == "text/event-stream":
        foreseen = response.text.endswith("data: [DONE]\n\n") and '"error"' not in response.text
    elif foreseen:
        foreseen = all(choice["finish_reason"] in ("stop", "length") for choice in response.json()["choices"])
    if not foreseen or status == httpx.codes.INTERNAL_SERVER_ERROR:
        raise Unforeseen(f"{status}, {content_type}: {response.text}")


async def storm(url: str, requests: int, seed: int) -> Counter[int]:
    """All requests at once; how often each status came. Raises `Unforeseen`, or `TimeoutError` after `SECONDS`."""
    rng = random.Random(seed)
    routes = [rng.choice((CHAT, COMPLETIONS)) for _ in range(requests)]
    bodies = [json.dumps(random_body(rng, route)) for route in routes]
    limits = httpx.Limits(max_connections=None)
    timeout = httpx.Timeout(SECONDS)
    async with (
        asyncio.timeout(SECONDS),
        httpx.AsyncClient(base_url=url, limits=limits, timeout=timeout, trust_env=False) as client,
    ):
        paths = (await client.get("/openapi.json")).json()["paths"]
        headers = {"content-type": "application/json"}
        answers = await asyncio.gather(
            *(client.post(route, content=body, headers=headers) for route, body in zip(routes, bodies, strict=True))
        )
        for route, answer in zip(routes, answers, strict=True):
            check_answer(answer, paths[route]["post"])
        return Counter(answer.status_code for answer in answers)
