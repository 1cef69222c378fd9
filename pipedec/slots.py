"""Which KV slots are free. The scheduler is the only allocator; stages merely obey the numbers in a batch."""

from __future__ import annotations

from collections.abc import Sequence


class SlotAllocator:
    """Slots `0 .. num_slots - 1`. What is used together is given close together, for devices that read it in place."""

    def __init__(self, num_slots: int) -> None:
        if num_slots < 1:
            raise ValueError(f"num_slots must be positive, not {num_slots}")
        self.num_slots = self.num_free = num_slots
        self._used = bytearray(num_slots)
        self._lowest = 0  # no slot below is free

    @property
    def num_used(self) -> int:
        return self.num_slots - self.num_free

    def allocate(self, count: int) -> tuple[int, ...]:
        """`count` free slots, ascending: the lowest run of so many, or if there is none the lowest ones. Raises
        `IndexError` when fewer are free: callers ask `num_free` first."""
        if count > self.num_free:
            raise IndexError(f"{count} slots wanted, {self.num_free} free")
        start = self._used.find(bytes(count), self._lowest)
        if start < 0:
            return tuple(self.take() for _ in range(count))
        self._used[start : start + count] = b"\1" * count
        self.num_free -= count
        return tuple(range(start, start + count))

    def take(self, start: int = 0) -> int:
        """The lowest free slot from `start` on, else the lowest of all. Raises `IndexError` when there is none."""
        slot = self._used.find(0, max(start, self._lowest))
        if slot < 0:
            slot = self._used.find(0, self._lowest)
        if slot < 0:
            raise IndexError("a slot wanted, 0 free")
        if start <= self._lowest:
            self._lowest = slot + 1
        self._used[slot] = 1
        self.num_free -= 1
        return slot

    def free(self, slots: Sequence[int]) -> None:
        """Give slots back. Freeing a slot that is not in use is a bug in the caller, and raises."""
        if len(slots) > 1 and self._free_run(slots[0], slots):
            return
        for slot in slots:
            if not self._used[slot]:
                raise ValueError(f"slot {slot} freed twice")
            self._used[slot] = 0
            self.num_free += 1
            self._lowest = min(self._lowest, slot)

    def _free_run(self, first: int, slots: Sequence[int]) -> bool:
        """Free slots in use that follow one another, all at once; False where they are not that."""
        run, used = range(first, first + len(slots)), b"\1" * len(slots)
        if slots[-1] != run[-1] or self._used[run.start : run.stop] != used or list(slots) != list(run):
            return False
        self._used[run.start : run.stop] = bytes(len(slots))
        self.num_free += len(slots)
        self._lowest = min(self._lowest, first)
        return True

    def check_integrity(self) -> None:
        """Every slot is either free or in use. For tests, and for a service that is idle."""
        assert sum(self._used) == self.num_used
        assert all(self._used[: self._lowest])
