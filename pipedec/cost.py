"""What a batch of so many rows costs: measured where it is computed, and told to the policy. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence

Cost = Callable[[int], float]  # rows -> time, in any unit

WEIGHT = 0.2  # of the newest step in the running mean
COLD_STEPS = 2  # of each bucket, which are slower than all that follow, and are left out
FORGOTTEN = 2000  # steps without one of its size, after which a bucket's mean is worth nothing


def flat_cost(rows: int) -> float:
    """A device that is limited by reading its weights up to 64 rows, and by arithmetic beyond."""
    return max(1.0, rows / 64)


def bucket(rows: int) -> int:
    """The least power of two that is no less: batches of about the same size."""
    return 1 << max(0, rows - 1).bit_length()


class StepTimes:
    """Running mean of compute seconds, in buckets: a step of n rows counts for the least power of two >= n.

    Whoever chooses rows by these times avoids what was slow, and would never learn that it was so only once. So a
    bucket that nobody used for long is forgotten.
    """

    def __init__(self) -> None:
        self._means: dict[int, float] = {}
        self._steps: Counter[int] = Counter()
        self._newest: dict[int, int] = {}  # bucket -> number of its newest step

    def add(self, rows: int, seconds: float) -> None:
        """A step is over. One without rows says nothing."""
        if not rows:
            return
        size = bucket(rows)
        self._steps[size] += 1
        if self._steps[size] > COLD_STEPS:
            mean = self._means.get(size, seconds)
            self._means[size] = mean + WEIGHT * (seconds - mean)
        self._newest[size] = newest = self._steps.total()
        if newest - min(self._newest.values()) >= FORGOTTEN:
            self._means.pop(oldest := min(self._newest, key=self._newest.__getitem__), None)
            del self._newest[oldest]

    def snapshot(self) -> tuple[tuple[int, float], ...]:
        """(rows, seconds) of every bucket known, ascending."""
        return tuple(sorted(self._means.items()))


class StepCost:
    """Seconds of the slowest stage by rows, linear between what was measured.

    Beyond the largest batch that was measured it goes on as `prior` does: hopeful, so that larger ones are tried.
    """

    def __init__(self, prior: Cost = flat_cost) -> None:
        self._prior = prior
        self._by_stage: dict[int, dict[int, float]] = {}
        self._rows: list[int] = []
        self._seconds: list[float] = []
        self._known: dict[int, float] = {}  # what was asked since something changed: every row of a batch asks

    def observe(self, stage: int, times: Sequence[tuple[int, float]]) -> None:
        """A stage's recent (rows, seconds), which replace what it said before. What cannot be is left out."""
        said = {rows: seconds for rows, seconds in times if rows > 0 and seconds > 0}
        if self._by_stage.get(stage) == said:
            return
        self._by_stage[stage] = said
        self._known.clear()
        self._rows = sorted({rows for times in self._by_stage.values() for rows in times})
        slowest = 0.0
        self._seconds = []
        for rows in self._rows:  # more rows never take less time: what seems so is noise
            slowest = max(slowest, *(times.get(rows, 0.0) for times in self._by_stage.values()))
            self._seconds.append(slowest)

    def least(self) -> dict[int, float]:
        """By stage, seconds of the fewest rows that it has said something of."""
        return {stage: times[min(times)] for stage, times in list(self._by_stage.items()) if times}

    def __call__(self, rows: int) -> float:
        if (seconds := self._known.get(rows)) is None:
            seconds = self._known[rows] = self._seconds_for(rows)
        return seconds

    def _seconds_for(self, rows: int) -> float:
        if not self._rows:
            return self._prior(rows)
        index = bisect_left(self._rows, rows)
        if index == len(self._rows):
            return self._seconds[-1] * self._prior(rows) / self._prior(self._rows[-1])
        if index == 0:
            return self._seconds[0]
        (low, high), (less, more) = self._rows[index - 1 : index + 1], self._seconds[index - 1 : index + 1]
        return less + (more - less) * (rows - low) / (high - low)
