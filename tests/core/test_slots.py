"""The slot allocator against a plain set."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pipedec.slots import SlotAllocator


class SlotMachine(RuleBasedStateMachine):
    @initialize(num_slots=st.integers(1, 20))
    def create(self, num_slots: int) -> None:
        self.allocator = SlotAllocator(num_slots)
        self.used: set[int] = set()

    @rule(count=st.integers(0, 8))
    def allocate(self, count: int) -> None:
        free = sorted(set(range(self.allocator.num_slots)) - self.used)
        if count > len(free):
            with pytest.raises(IndexError, match="wanted"):
                self.allocator.allocate(count)
        else:
            runs = (
                free[i : i + count]
                for i in range(len(free))
                if free[i : i + count] == [*range(free[i], free[i] + count)]
            )
            wanted = next(runs, free[:count])
            assert self.allocator.allocate(count) == tuple(wanted)
            self.used.update(wanted)

    @rule(start=st.integers(0, 20))
    def take(self, start: int) -> None:
        free = sorted(set(range(self.allocator.num_slots)) - self.used)
        if not free:
            with pytest.raises(IndexError, match="wanted"):
                self.allocator.take(start)
        else:
            wanted = next((slot for slot in free if slot >= start), free[0])
            assert self.allocator.take(start) == wanted
            self.used.add(wanted)

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if self.used:
            slots = data.draw(st.lists(st.sampled_from(sorted(self.used)), unique=True))
            if data.draw(st.booleans()):
                slots.sort()  # as most are given
            self.allocator.free(slots)
            self.used -= set(slots)

    @invariant()
    def agrees(self) -> None:
        self.allocator.check_integrity()
        assert self.allocator.num_used == len(self.used)
        assert self.allocator.num_free == self.allocator.num_slots - len(self.used)


TestSlots = SlotMachine.TestCase


def test_a_slot_cannot_be_freed_twice() -> None:
    allocator = SlotAllocator(4)
    slots = allocator.allocate(2)
    allocator.free(slots)
    with pytest.raises(ValueError, match="slot 0 freed twice"):
        allocator.free(slots)


def test_a_pool_has_at_least_one_slot() -> None:
    with pytest.raises(ValueError, match="num_slots"):
        SlotAllocator(0)
