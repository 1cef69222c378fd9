"""Work that is under way elsewhere, and how long it may be. No clock: times are seconds of any monotonic one.

What answers slower and slower, or not at all, looks alike from here. So the limit is learnt from the work itself, and
nothing that is merely slow is given up twice at the same limit.
"""

from __future__ import annotations

from collections import deque

from pipedec.cost import bucket
from pipedec.errors import ProtocolError
from pipedec.metrics.distribution import Distribution

FACTOR = 10.0  # times what as many rows took lately: beyond that it hangs
FADING = 0.9  # of what was slowest, with every later answer


class Patience:
    """How long a number of rows may take: `FACTOR` times what took longest lately, at least `floor` seconds, and
    `first` seconds as long as nothing was ever answered."""

    def __init__(self, floor: float, first: float) -> None:
        self._floor, self._first = floor, first
        self._slowest: dict[int, float] = {}  # by rows, rounded up to a power of two

    def learn(self, rows: int, seconds: float) -> None:
        """So many rows were answered after so long. One answer at most doubles the limit: it may have been a fault."""
        size, most = bucket(rows), 2 * self.limit(rows) / FACTOR
        self._slowest[size] = max(min(seconds, most), FADING * self._slowest.get(size, 0.0))

    def run_out(self, rows: int) -> None:
        """So many rows were not answered within the limit: the next time it is twice as long."""
        self._slowest[bucket(rows)] = 2 * self.limit(rows) / FACTOR

    def limit(self, rows: int) -> float:
        """Seconds. Rows beyond all experience are taken to need in proportion: they never need more."""
        if not self._slowest:
            return self._first
        size, most = bucket(rows), max(self._slowest)
        if size > most:
            expected = self._slowest[most] * size / most
        else:
            expected = self._slowest[min(known for known in self._slowest if known >= size)]
        return max(self._floor, FACTOR * expected)


class Transit:
    """What was sent and is not answered yet; answers come in the order of sending. `times` is told how long each was
    under way."""

    def __init__(self, patience: Patience, times: Distribution) -> None:
        self._patience, self._times = patience, times
        self._under_way: deque[tuple[int, int, float]] = deque()  # (step, rows, when it was sent)
        self._since = 0.0  # when the oldest of these was sent, or its predecessor answered

    @property
    def oldest(self) -> int | None:
        """The step whose answer is due next."""
        return self._under_way[0][0] if self._under_way else None

    def clear(self) -> None:
        """Nothing of it will be answered any more."""
        self._under_way.clear()

    def sent(self, step: int, rows: int, now: float) -> None:
        if not self._under_way:
            self._since = now
        self._under_way.append((step, rows, now))

    def answered(self, step: int, now: float) -> bool:
        """Whether this answer is due. False: there was one already. Raises `ProtocolError` if one before it is lost."""
        if self.oldest is None or step < self.oldest:
            return False
        if step > self.oldest:
            raise ProtocolError(f"step {step} was answered, but step {self.oldest} was not")
        self._patience.learn(self._rows(), now - self._since)
        _, _, sent = self._under_way.popleft()
        self._times.add(now - sent)
        self._since = now
        return True

    def overdue(self, now: float) -> float:
        """Seconds since anything was answered, if that is too long; else 0. Asking again then finds more patience."""
        if not self._under_way or now - self._since <= self._patience.limit(self._rows()):
            return 0.0
        self._patience.run_out(self._rows())
        return now - self._since

    def _rows(self) -> int:
        return max(rows for _, rows, _ in self._under_way)
