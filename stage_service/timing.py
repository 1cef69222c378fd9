"""How long steps take, by their number of rows."""

from __future__ import annotations

from collections import Counter

WEIGHT = 0.2  # of the newest step in the running mean
COLD_STEPS = 2  # of each bucket, which are slower than all that follow, and are left out


class StepTimes:
    """Running mean of compute seconds, in buckets: a step of n rows counts for the least power of two >= n."""

    def __init__(self) -> None:
        self._means: dict[int, float] = {}
        self._steps: Counter[int] = Counter()

    def add(self, rows: int, seconds: float) -> None:
        """A step is over. One without rows says nothing."""
        if not rows:
            return
        bucket = 1 << (rows - 1).bit_length()
        self._steps[bucket] += 1
        if self._steps[bucket] > COLD_STEPS:
            mean = self._means.get(bucket, seconds)
            self._means[bucket] = mean + WEIGHT * (seconds - mean)

    def snapshot(self) -> tuple[tuple[int, float], ...]:
        """(rows, seconds) of every bucket known, ascending."""
        return tuple(sorted(self._means.items()))
