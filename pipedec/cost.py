"""What a batch of so many rows costs: the time of the slowest stage, as the stages themselves report it. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence

Cost = Callable[[int], float]  # rows -> time, in any unit


def flat_cost(rows: int) -> float:
    """A device that is limited by reading its weights up to 64 rows, and by arithmetic beyond."""
    return max(1.0, rows / 64)


class StepCost:
    """Seconds of the slowest stage by rows, linear between what was measured.

    Beyond the largest batch that was measured it goes on as `prior` does: hopeful, so that larger ones are tried.
    """

    def __init__(self, prior: Cost = flat_cost) -> None:
        self._prior = prior
        self._by_stage: dict[int, dict[int, float]] = {}
        self._rows: list[int] = []
        self._seconds: list[float] = []

    def observe(self, stage: int, times: Sequence[tuple[int, float]]) -> None:
        """A stage's recent (rows, seconds), which replace what it said before."""
        if self._by_stage.get(stage) == (said := dict(times)):
            return
        self._by_stage[stage] = said
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
        if not self._rows:
            return self._prior(rows)
        index = bisect_left(self._rows, rows)
        if index == len(self._rows):
            return self._seconds[-1] * self._prior(rows) / self._prior(self._rows[-1])
        if index == 0:
            return self._seconds[0]
        (low, high), (less, more) = self._rows[index - 1 : index + 1], self._seconds[index - 1 : index + 1]
        return less + (more - less) * (rows - low) / (high - low)
