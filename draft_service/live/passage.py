"""When a batch was at which stage: estimated, since stages do not report each step. Pure.

The head knows when it sent a batch and when the verdict came. Between the two, a batch enters a stage as soon as it has
left the one before and the stage is free, and stays for as long as the stage says that so many rows take. The verdict
then corrects the estimate, and what the stages turned out to need lately stretches those that follow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from draft_service.live.tap import StepTimes
from pipedec.cost import StepCost

UNKNOWN_SECONDS = 0.02  # of a step, until the stage has said more
ADAPTION = 0.1  # weight of the newest batch in the pace
PACE_LIMITS = (0.25, 4.0)


@dataclass(slots=True)
class Passage:
    """The estimated times of one batch: it is at stage s from `begins[s]` to `ends[s]`."""

    begins: list[float]
    ends: list[float]


class Passages:
    """The passages of one pipeline, in the order of sending."""

    def __init__(self, stages: int) -> None:
        self.stages = stages
        self._times: list[StepTimes] = [()] * stages
        self._costs = [StepCost() for _ in range(stages)]
        self._pace = 1.0
        self.clear()

    def clear(self) -> None:
        """A new epoch: all stages are free."""
        self._free = [0.0] * len(self._costs)
        self._done = [0.0] * len(self._costs)

    def observe(self, times: Sequence[StepTimes]) -> None:
        """What every stage says of its step times, by rows."""
        self._times = list(times)
        for cost, known in zip(self._costs, self._times, strict=True):
            cost.observe(0, known)

    def seconds(self, stage: int, rows: int) -> float:
        """How long a stage needs for so many rows."""
        return self._costs[stage](rows) if self._times[stage] else UNKNOWN_SECONDS

    def round_trip(self) -> tuple[float, float] | None:
        """Seconds that one row needs through all stages, one after the other, and through the slowest of them; None
        while a stage has not said."""
        if not all(self._times):
            return None
        each = [self.seconds(stage, 1) for stage in range(len(self._costs))]
        return sum(each), max(each)

    def sent(self, rows: int, now: float) -> Passage:
        """A batch goes to stage 0."""
        passage, at = Passage([], []), now
        for stage, free in enumerate(self._free):
            begin = max(at, free)
            at = begin + self._pace * self.seconds(stage, max(1, rows))
            passage.begins.append(begin)
            passage.ends.append(at)
        self._free = list(passage.ends)
        return passage

    def answered(self, passage: Passage, now: float) -> None:
        """The oldest batch came back: fit its passage between its sending and now, after the one before it."""
        start, expected = passage.begins[0], passage.ends[-1] - passage.begins[0]
        ratio = max(now - start, 1e-6) / max(expected, 1e-6)
        low, high = PACE_LIMITS
        self._pace = min(high, max(low, self._pace * ratio**ADAPTION))
        previous = start
        for stage, done in enumerate(self._done):
            begin = max(start + (passage.begins[stage] - start) * ratio, done, previous)
            end = max(start + (passage.ends[stage] - start) * ratio, begin)
            passage.begins[stage], passage.ends[stage] = min(begin, now), min(end, now)
            previous = passage.ends[stage]
        self._done = list(passage.ends)
