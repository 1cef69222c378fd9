"""The draft process is told to end, or just ends, while clients read their streams."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from benchmarks.hostile.trial import MODEL
from benchmarks.up import Up
from tests.sockets import until

SHORT, LONG = 16, 240
DONE = "data: [DONE]"


class Stream:
    """One streamed completion."""

    def __init__(self, response: httpx.Response, max_tokens: int) -> None:
        assert response.status_code == 200
        self._lines = (line for line in response.iter_lines() if line)
        self.first = next(self._lines)
        self.max_tokens = max_tokens

    def rest(self) -> list[str]:
        """All further lines."""
        return list(self._lines)

    def is_finished_by(self, lines: list[str]) -> bool:
        return lines[-1] == DONE and json.loads(lines[-2][6:])["choices"][0]["finish_reason"] == "length"


@contextmanager
def stream(client: httpx.Client, max_tokens: int) -> Iterator[Stream]:
    body: dict[str, Any] = {"model": MODEL, "prompt": "Hello", "temperature": 0, "ignore_eos": True}
    body |= {"max_tokens": max_tokens, "stream": True}
    with client.stream("POST", "/v1/completions", json=body) as response:
        yield Stream(response, max_tokens)


@contextmanager
def client_of(up: Up) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=up.url, timeout=120, trust_env=False) as client:
        yield client


def wait_until_it_serves_again(up: Up, client: httpx.Client, old: int) -> None:
    def serves() -> bool:
        draft = up.processes().get("draft")
        if draft is None or draft.pid == old:
            return False
        try:
            return client.get("/ready").status_code == 200
        except httpx.HTTPError:
            return False

    until(serves, seconds=240.0, pace=0.2)


def stage_pids(up: Up) -> dict[str, int]:
    return {name: process.pid for name, process in up.processes().items() if name != "draft"}


def test_sigterm_lets_requests_end_within_the_grace_and_then_says_so(up: Up) -> None:
    draft, stages = up.processes()["draft"], stage_pids(up)
    with client_of(up) as client:
        with stream(client, LONG) as long, stream(client, SHORT) as short:
            draft.send_signal(signal.SIGTERM)
            until(lambda: client.get("/ready").status_code == 503)
            refused = client.post("/v1/completions", json={"model": MODEL, "prompt": "x"})
            assert (refused.status_code, refused.json()["error"]["message"]) == (503, "shutting down")
            assert int(refused.headers["retry-after"]) >= 1
            assert short.is_finished_by(short.rest())
            with stopped(up, "stage 1"):  # so that the long one cannot end within the grace
                last = long.rest()[-1]
            assert json.loads(last[6:])["error"]["message"] == "the service is shutting down"
        wait_until_it_serves_again(up, client, draft.pid)
        with stream(client, SHORT) as again:
            assert again.is_finished_by(again.rest())
    assert stage_pids(up) == stages


@contextmanager
def stopped(up: Up, name: str) -> Iterator[None]:
    process = up.processes()[name]
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_killed_draft_process_cuts_every_stream_visibly_and_is_replaced(up: Up) -> None:
    draft, stages = up.processes()["draft"], stage_pids(up)
    with client_of(up) as client:
        with stream(client, LONG) as long, stream(client, LONG) as other:
            draft.send_signal(signal.SIGKILL)
            for each in (long, other):
                try:
                    lines = each.rest()
                except httpx.RemoteProtocolError:
                    continue
                assert lines[-1] == DONE, "it had been finished before"
        wait_until_it_serves_again(up, client, draft.pid)
        with stream(client, SHORT) as again:
            assert again.is_finished_by(again.rest())
    assert stage_pids(up) == stages
