"""The batches in the pipeline: whose they are, what is dead in them, and whether another may follow. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from pipedec.wire.messages import Cancel


class InFlight:
    """Of one epoch, in the order of their steps. As many credits as there are `stages`, and one more, are spent on
    batches and come back with their verdicts. `len` counts the batches."""

    def __init__(self, stages: int) -> None:
        self._credits = stages + 1
        self._requests: deque[frozenset[int]] = deque()  # of each batch, oldest first
        self._dead: list[tuple[int, int]] = []  # (request, node)
        self._started = -1
        self.step = 0  # of the next batch

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def has_credit(self) -> bool:
        """Whether the pipeline may hold another batch."""
        return len(self) < self._credits

    @property
    def is_awaited(self) -> bool:
        """Whether stage 0 wants one. Until then a batch composed would only grow stale in its queue."""
        return self._started >= self.step - 1

    def started(self, step: int) -> None:
        """Stage 0 will soon want the batch after `step`."""
        self._started = max(self._started, step)

    def sent(self, requests: Iterable[int]) -> None:
        """The next batch went, with rows or a prompt of these requests."""
        self._requests.append(frozenset(requests))
        self.step += 1

    def answered(self) -> None:
        """The oldest has its verdict."""
        self._requests.popleft()

    def lose(self) -> frozenset[int]:
        """No verdict will come any more. The requests that this met."""
        caught = frozenset[int]().union(*self._requests)
        self._requests.clear()
        return caught

    def bury(self, nodes: Collection[tuple[int, int]]) -> None:
        """Nothing that was sent of these (request, node) can become a token."""
        self._dead += nodes

    def take_cancel(self, epoch: int) -> Cancel | None:
        """What died since the last call, for the stages to skip; None where they have none of it."""
        dead, self._dead = self._dead, []
        return Cancel(epoch, self.step - 1, tuple(dead)) if dead and self._requests else None
