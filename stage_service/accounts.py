"""Where a stage's time goes, and which of it was for rows that became tokens."""

from __future__ import annotations

import time
from collections.abc import Callable

from pipedec.metrics.declared.stage import State
from pipedec.wire.messages import Batch, Commit


class TimeByState:
    """Adds the time that passes to the seconds of the state it passes in."""

    def __init__(self, seconds: dict[State, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds, self._clock = seconds, clock
        self._state: State = "unformed"
        self._entered = self._counted = clock()

    def enter(self, state: State) -> float:
        """From now on it is this state; the seconds that the last one was."""
        self.flush()
        seconds = self._counted - self._entered
        self._state, self._entered = state, self._counted
        return seconds

    def flush(self) -> None:
        """Count the time until now."""
        now = self._clock()
        self._seconds[self._state] += now - self._counted
        self._counted = now


class UsefulRows:
    """Rows that became tokens, and the time they took: known when the head has their slots committed.

    A step's time is split evenly over its rows, and each tree row's share kept with its slot until then, or until the
    slot is computed for another row.
    """

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}  # by slot

    def add(self, batch: Batch, rows: int, seconds: float) -> tuple[int, float]:
        """A step is over, in which so many rows were computed: how many are now known to be useful, and their time."""
        committed = [slot for op in batch.ops if isinstance(op, Commit) for slot in op.slots]
        useful_seconds = sum(self._seconds.pop(slot, 0.0) for slot in committed)
        if not rows:
            return len(committed), useful_seconds
        prefilled, share = batch.num_prefill, seconds / rows
        # Also of rows that were not computed: they are never committed.
        self._seconds.update(dict.fromkeys(batch.rows.slot.tolist(), share))
        return len(committed) + prefilled, useful_seconds + prefilled * share
