"""Waiting for what another thread will do, by the clock only when it never does it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from pipedec.wire.sockets import Pollable, Poller

T = TypeVar("T")
DEADLINE = 60.0  # seconds, after which a test fails


def receive(link: Pollable, attempt: Callable[[], T | None]) -> T:
    """What `attempt` gives once the link is ready for it."""
    poller, deadline = Poller(link), time.monotonic() + DEADLINE
    while (result := attempt()) is None:
        assert time.monotonic() < deadline, "nothing arrived"
        poller.wait(0.05)
    return result


def until(condition: Callable[[], bool], seconds: float = DEADLINE, pace: float = 0.005) -> None:
    """Wait for something that no socket of ours announces, looking every `pace` seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(pace)
