"""How fast tokens come, and how fast they would come without predictions. Pure; times are seconds of any clock."""

from __future__ import annotations

from collections import deque

WINDOW = 6.0  # seconds that the rate is of, at most
SHORTEST = 2.0  # and at least: tokens come in bursts, since one verdict may decide several
LATEST = 200  # decided tokens that the hit rate is of


class Speed:
    """Of all requests together. A pause (nothing is decoded) does not count, and leaves the latest rates standing."""

    def __init__(self) -> None:
        self.tokens_per_second: float | None = None
        self._came: deque[tuple[float, int]] = deque()
        self._hits: deque[bool] = deque(maxlen=LATEST)

    @property
    def hit_rate(self) -> float | None:
        """Share of the latest decided tokens that were in flight already; None before the first."""
        return sum(self._hits) / len(self._hits) if self._hits else None

    def decided(self, hit: bool) -> None:
        """A token was decided."""
        self._hits.append(hit)

    def came(self, now: float, tokens: int) -> None:
        """One verdict decided so many tokens."""
        self._came.append((now, tokens))
        while self._came[0][0] < now - WINDOW:
            self._came.popleft()
        seconds = now - self._came[0][0]
        if seconds >= SHORTEST:
            self.tokens_per_second = sum(tokens for _, tokens in list(self._came)[1:]) / seconds

    def pause(self) -> None:
        """Nothing is decoded for a while."""
        self._came.clear()


def plain_tokens_per_second(requests: int, round_trip: float, slowest: float) -> float:
    """What the same stages would give without predictions: every request has one token in the pipeline at a time, so
    each needs `round_trip` seconds a token, and together they cannot beat the slowest stage."""
    return min(max(1, requests) / round_trip, 1 / slowest)
