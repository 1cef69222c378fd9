"""Clients that ask the same mixed questions again and again, and compare what they are told."""

from __future__ import annotations

import asyncio
import json
import random
import string
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

Json = dict[str, Any]
TIMEOUT = httpx.Timeout(900.0)


@dataclass(frozen=True, slots=True)
class Answer:
    """What a client was told: the texts of the choices, and why each ended."""

    texts: tuple[str, ...]
    reasons: tuple[str | None, ...]


def questions(model: str, count: int, seed: int, max_tokens: int) -> list[Json]:
    """Bodies of completions: greedy and sampled, long and short, streamed or not, with stop strings or several
    choices. Whatever is sampled has a seed, so that each has one right answer."""
    rng = random.Random(seed)

    def text(length: int) -> str:
        return "".join(rng.choices(string.ascii_letters + "      .,", k=length))

    bodies = []
    for index in range(count):
        body: Json = {"model": model, "prompt": text(rng.randint(1, 120)), "temperature": 0, "seed": index}
        body |= {"max_tokens": rng.randint(8, max_tokens), "stream": rng.random() < 0.75}
        if rng.random() < 0.5:
            body |= {"temperature": rng.choice((0.5, 0.8, 1.0)), "top_p": rng.choice((0.9, 1.0))}
        if rng.random() < 0.3:
            body |= {"stop": [text(2), text(1)]}
        if rng.random() < 0.3:
            body |= {"ignore_eos": True, "presence_penalty": 0.5}
        if not body["stream"] and rng.random() < 0.5:
            body |= {"n": 2}
        bodies.append(body)
    return bodies


class RequestFailed(Exception):
    """The service did not give a finished answer."""


@dataclass(slots=True)
class Load:
    """`clients` of one endpoint. All times are of `time.monotonic`."""

    client: httpx.AsyncClient
    bodies: Sequence[Json]
    expected: dict[int, Answer] = field(default_factory=dict)
    token_times: list[float] = field(default_factory=list)
    """When a piece of a streamed text came to any client."""
    latencies: list[tuple[float, float]] = field(default_factory=list)
    """Of every finished request: when it ended, and its seconds."""
    failed: list[str] = field(default_factory=list)
    different: list[str] = field(default_factory=list)
    stopping: bool = False

    async def learn(self, clients: int) -> None:
        """Ask every question once, undisturbed: these answers are the right ones. Raises `RequestFailed`."""
        gate = asyncio.Semaphore(clients)

        async def ask(index: int) -> None:
            async with gate:
                self.expected[index] = await self._ask(self.bodies[index])

        await asyncio.gather(*map(ask, range(len(self.bodies))))
        self.token_times.clear()

    async def run(self, clients: int, seed: int) -> None:
        """Ask random questions until `stopping`; each client then still finishes its last one."""
        await asyncio.gather(*(self._be_client(random.Random(f"{seed}-{client}")) for client in range(clients)))

    async def _be_client(self, rng: random.Random) -> None:
        while not self.stopping:
            index = rng.randrange(len(self.bodies))
            start = time.monotonic()
            try:
                answer = await self._ask(self.bodies[index])
            except (RequestFailed, httpx.HTTPError) as error:
                self.failed.append(f"question {index}: {type(error).__name__}: {error}")
                await asyncio.sleep(0.2)
                continue
            self.latencies.append((time.monotonic(), time.monotonic() - start))
            if answer != self.expected[index]:
                self.different.append(f"question {index}: {answer} instead of {self.expected[index]}")

    async def _ask(self, body: Json) -> Answer:
        async with self.client.stream("POST", "/v1/completions", json=body, timeout=TIMEOUT) as response:
            if response.status_code != httpx.codes.OK:
                raise RequestFailed(f"{response.status_code}: {(await response.aread()).decode()}")
            if body["stream"]:
                return await self._read_stream(response)
            choices = json.loads(await response.aread())["choices"]
        return Answer(tuple(c["text"] for c in choices), tuple(c["finish_reason"] for c in choices))

    async def _read_stream(self, response: httpx.Response) -> Answer:
        text, reason = "", None
        async for line in response.aiter_lines():
            if not line:
                continue
            if line == "data: [DONE]":
                return Answer((text,), (reason,))
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                raise RequestFailed(str(event["error"]))
            (choice,) = event["choices"]
            text, reason = text + choice["text"], choice["finish_reason"]
            self.token_times.append(time.monotonic())
        raise RequestFailed("the stream ended without its end")
