"""Requests that are right, and wrong in every way, at once; `python -m benchmarks.hostile` sends a thousand."""

from __future__ import annotations

import asyncio

from benchmarks.hostile.storm import storm
from benchmarks.up import Up

REQUESTS = 250


def test_many_requests_at_once_all_get_a_documented_answer(up: Up) -> None:
    statuses = asyncio.run(storm(up.url, REQUESTS, seed=11))
    assert sum(statuses.values()) == REQUESTS
    assert set(statuses) <= {200, 400, 404, 429, 503}
    assert statuses[200] > 0
    assert statuses[400] > 0
