"""When a batch was at which stage: estimated, since stages do not report each step. Pure.

The head knows when it sent a batch, which is just before stage 0 is free, and when the verdict came. Between the two,
a batch enters a stage as soon as it has left the one before and the stage is free, and stays for as long as the stage
says that so many rows take. Every verdict corrects the estimate of its own batch and of those behind it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from draft_service.live.tap import StepTimes
from pipedec.cost import StepCost

UNKNOWN_SECONDS = 0.02  # of a step, until a stage has said more
PACE_STEP = 1.02  # a batch that came late stretches, one that came early shortens, those that follow
PACE_LIMITS = (0.25, 4.0)


@dataclass(slots=True)
class Passage:
    """The estimated times of one batch: it is at stage s from `begins[s]` to `ends[s]`."""

    rows: int
    begins: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)


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
        self._under_way: deque[Passage] = deque()
        self._left = [0.0] * self.stages  # when the latest batch that is back left each stage

    def observe(self, times: Sequence[StepTimes]) -> None:
        """What every stage says of its step times, by rows."""
        self._times = list(times)
        for cost, known in zip(self._costs, self._times, strict=True):
            cost.observe(0, known)

    def seconds(self, stage: int, rows: int) -> float:
        """How long a stage needs for so many rows; as long as the others while it has not said."""
        if self._times[stage]:
            return self._costs[stage](rows)
        known = [cost(rows) for cost, times in zip(self._costs, self._times, strict=True) if times]
        return sum(known) / len(known) if known else UNKNOWN_SECONDS

    def round_trip(self) -> tuple[float, float] | None:
        """Seconds that one row needs through all stages, one after the other, and through the slowest of them; None
        while a stage has not said."""
        if not all(self._times):
            return None
        each = [self.seconds(stage, 1) for stage in range(self.stages)]
        return sum(each), max(each)

    def sent(self, rows: int, now: float) -> Passage:
        """A batch goes to stage 0, which wants it: whatever is there still is about to leave."""
        before = self._under_way[-1].ends if self._under_way else self._left
        passage = Passage(max(1, rows))
        begin = min(max(now, before[0]), now + self._pace * self.seconds(0, passage.rows))
        self._plan(passage, begin, before)
        self._under_way.append(passage)
        return passage

    def answered(self, passage: Passage, now: float) -> None:
        """The oldest batch came back: its passage ends now, and those behind it are planned anew."""
        self._under_way.remove(passage)
        self._fit(passage, now)
        self._left = before = passage.ends
        for later in self._under_way:
            self._plan(later, later.begins[0], before)
            before = later.ends

    def _plan(self, passage: Passage, begin: float, before: Sequence[float]) -> None:
        """One stage after the other from `begin` on, behind the batch that leaves the stages at the times `before`."""
        passage.begins, passage.ends = [], []
        for stage, free in enumerate(before):
            at = begin if stage == 0 else max(passage.ends[-1], free)
            passage.begins.append(at)
            passage.ends.append(at + self._pace * self.seconds(stage, passage.rows))

    def _fit(self, passage: Passage, now: float) -> None:
        start, expected = min(passage.begins[0], now), passage.ends[-1] - passage.begins[0]
        ratio = (now - start) / expected if expected else 0.0
        low, high = PACE_LIMITS
        if abs(ratio - 1) > PACE_STEP - 1:
            self._pace = min(high, max(low, self._pace * PACE_STEP if ratio > 1 else self._pace / PACE_STEP))
        at = start
        for stage, left in enumerate(self._left):
            begin = max(start + (passage.begins[stage] - passage.begins[0]) * ratio, left, at)
            at = max(start + (passage.ends[stage] - passage.begins[0]) * ratio, begin)
            passage.begins[stage], passage.ends[stage] = min(begin, now), (at := min(at, now))
