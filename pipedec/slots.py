"""Which KV slots are free. The scheduler is the only allocator; stages merely obey the numbers in a batch."""

from __future__ import annotations

import heapq
from collections.abc import Iterable


class SlotAllocator:
    """Slots `0 .. num_slots - 1`. The lowest free ones are given first, so that the pool stays dense and the slots
    of a prompt are mostly one contiguous run."""

    def __init__(self, num_slots: int) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots must be positive, not {num_slots}")
        self.num_slots = num_slots
        self._free = list(range(num_slots))  # a heap, and sorted to begin with
        self._used = bytearray(num_slots)

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.num_slots - len(self._free)

    def allocate(self, count: int) -> tuple[int, ...]:
        """`count` free slots, lowest first. Raises `IndexError` when fewer are free: callers ask `num_free` first."""
        if count > len(self._free):
            raise IndexError(f"{count} slots wanted, {len(self._free)} free")
        slots = tuple(heapq.heappop(self._free) for _ in range(count))
        for slot in slots:
            self._used[slot] = 1
        return slots

    def take(self) -> int:
        """The lowest free slot. Raises `IndexError` when there is none."""
        slot = heapq.heappop(self._free)
        self._used[slot] = 1
        return slot

    def free(self, slots: Iterable[int]) -> None:
        """Give slots back. Freeing a slot that is not in use is a bug in the caller, and raises."""
        for slot in slots:
            if not self._used[slot]:
                raise ValueError(f"slot {slot} freed twice")
            self._used[slot] = 0
            heapq.heappush(self._free, slot)

    def check_integrity(self) -> None:
        """Every slot is either free, once, or in use. For tests, and for a service that is idle."""
        assert len(set(self._free)) == len(self._free)
        assert sum(self._used) == self.num_used
        assert not any(self._used[slot] for slot in self._free)
