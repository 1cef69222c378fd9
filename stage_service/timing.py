"""How long steps take, by their number of rows."""

from __future__ import annotations

WEIGHT = 0.2  # of the newest step in the running mean


class StepTimes:
    """Running mean of compute seconds, in buckets: a step of n rows counts for the least power of two >= n."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}

    def add(self, rows: int, seconds: float) -> None:
        """A step is over. One without rows says nothing."""
        if rows:
            bucket = 1 << (rows - 1).bit_length()
            mean = self._means.get(bucket, seconds)
            self._means[bucket] = mean + WEIGHT * (seconds - mean)

    def snapshot(self) -> tuple[tuple[int, float], ...]:
        """(rows, seconds) of every bucket seen, ascending."""
        return tuple(sorted(self._means.items()))
