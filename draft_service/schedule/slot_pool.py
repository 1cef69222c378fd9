"""The KV slots of a pipeline: free ones, those of running requests, and those kept for requests to come. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from draft_service.schedule.prefix_cache import Prefix, PrefixCache, Run
from pipedec.slots import SlotAllocator

_EVICTED = 64  # of so many slots one is given up at once, or more: looking for the oldest takes time


@dataclass(slots=True)
class Holding:
    """Where the K and V of a request's certain tokens lie, or will, but for the cursor's. Slots that are `shared` are
    the cache's, held up to `last`, with which the first `known` tokens end. Further slots should lie from `start` on,
    near the others."""

    slots: list[int]
    shared: bytearray
    last: Run
    known: int
    start: int
    seen: int  # the version of the cache in which it was looked for more to share
    noted: int = 0  # tokens that the cache was told the draft model has computed

    def append(self, slot: int) -> None:
        """The next token's, the request's own."""
        self.slots.append(slot)
        self.shared.append(0)

    def own(self) -> list[int]:
        """Slots that are nobody else's."""
        return [slot for slot, shared in zip(self.slots, self.shared, strict=True) if not shared]


class SlotPool:
    """Who has which slot. Where `caching`, computed tokens stay known until their slots are wanted; `freed` is told of
    the slots that may be written anew."""

    def __init__(self, num_slots: int, caching: bool, freed: Callable[[Sequence[int]], None]) -> None:
        self._allocator = SlotAllocator(num_slots)
        self._cache = PrefixCache()
        self._caching, self._freed = caching, freed

    @property
    def num_slots(self) -> int:
        return self._allocator.num_slots

    @property
    def num_free(self) -> int:
        """Slots that can be had: free ones, and those of tokens that nobody reads now."""
        return self._allocator.num_free + self._cache.num_idle

    @property
    def num_used(self) -> int:
        return self.num_slots - self.num_free

    @property
    def num_shared(self) -> int:
        """Of those used, the ones that several requests may read."""
        return self._cache.num_slots - self._cache.num_idle

    def take(self, start: int) -> int:
        """One slot, from `start` on if there is one. Raises `IndexError` when none can be had."""
        if not self._allocator.num_free:
            self._make_room(1)
        return self._allocator.take(start)

    def free(self, slots: Sequence[int]) -> None:
        """Give back slots that are a request's own."""
        self._allocator.free(slots)
        if slots:
            self._freed(slots)

    @property
    def version(self) -> int:
        """What `find` gives is of use as long as this is the same."""
        return self._cache.version

    def find(self, tokens: list[int]) -> Prefix:
        """What is known of a request's certain tokens."""
        return self._cache.find(tokens)

    def admit(self, num_tokens: int, known: Prefix, spare: int) -> Holding | None:
        """Slots for a request's certain tokens, with those that are known in theirs; None unless `spare` are left."""
        missing, idle = num_tokens - known.length, known.length - known.held
        if self.num_free < missing + idle + spare:
            return None
        self._cache.hold(known.last)
        self._make_room(missing)
        slots = [*known.last.all_slots(), *self._allocator.allocate(missing)]
        shared = bytearray(b"\1" * known.length + bytes(missing))
        start = 0 if not slots else slots[known.length] if missing else slots[-1]
        return Holding(slots, shared, known.last, known.length, start, self._cache.version)

    def adopt(self, holding: Holding, tokens: list[int], start: int, end: int) -> range:
        """The first of these tokens, none before `start` or from `end` on, that have become known meanwhile, and whose
        slots are now the known ones."""
        holding.seen = self._cache.version
        if not holding.last.known:
            return range(0)
        found = self._cache.find(tokens, end, Prefix(holding.last, holding.known, 0))
        known = range(max(start, holding.known), found.length)
        if not known:
            return range(0)
        own = holding.slots[known.start : known.stop]
        self._cache.hold(found.last)
        self._cache.let_go(holding.last)
        slots = found.last.all_slots()
        holding.slots[known.start : known.stop] = slots[known.start :]
        holding.shared[known.start : known.stop] = b"\1" * len(known)
        holding.last, holding.known, holding.start = found.last, found.length, slots[-1]
        self.free(own)
        return known

    def share(self, holding: Holding, tokens: list[int], drafted: int) -> None:
        """These tokens are computed: others may read them. Not if others know some of them by slots of their own: a
        run's tokens follow on those before, in one request's slots."""
        if not self._caching or not holding.last.known:
            return
        found = self._cache.find(tokens)
        own = holding.shared.find(0)
        if own != found.length or any(holding.shared[own:]):
            return
        run = self._cache.add(found.last, tokens[own:], holding.slots[own:])
        self._cache.hold(run)
        self._cache.let_go(holding.last)
        holding.last, holding.known = run, len(tokens)
        holding.shared[own:] = b"\1" * (len(tokens) - own)
        self.note_drafted(holding, drafted)

    def num_drafted(self, holding: Holding) -> int:
        """How many of its tokens, from the first on, are shared and computed by the draft model."""
        return min(_num_leading(holding.shared), holding.last.num_drafted())

    def note_drafted(self, holding: Holding, count: int) -> None:
        """The draft model has computed the first `count` tokens."""
        count = min(count, _num_leading(holding.shared))
        if count > holding.noted:
            holding.noted = count
            self._cache.note_drafted(holding.last, count)

    def release(self, holding: Holding, tokens: list[int], computed: int, drafted: int) -> None:
        """The request leaves. Its first `computed` tokens stay known, the first `drafted` also to the draft model."""
        self.note_drafted(holding, min(computed, drafted))
        self._cache.let_go(holding.last)
        keep = range(0)
        if self._caching and computed and holding.last.known:
            found = self._cache.find(tokens[:computed])
            keep = range(found.length, computed)
            if keep:
                new = holding.slots[keep.start : keep.stop]
                new_drafted = min(len(keep), max(0, drafted - keep.start))
                self._cache.add(found.last, tokens[keep.start : keep.stop], new, new_drafted)
        own = (i for i, shared in enumerate(holding.shared) if not shared)
        self.free([holding.slots[i] for i in own if i not in keep])

    def forget(self, holding: Holding) -> None:
        """What this request shares is not sound: nobody else is to begin with it."""
        self._cache.forget(holding.last)

    def forget_draft(self) -> None:
        """The draft model's KV is empty."""
        self._cache.forget_draft()

    def _make_room(self, count: int) -> None:
        if (wanted := count - self._allocator.num_free) > 0:
            self.free(self._cache.evict(max(wanted, self.num_slots // _EVICTED)))

    def check_integrity(self, holdings: Iterable[Holding], predicted: Iterable[int]) -> None:
        """Raise `AssertionError` where an invariant is broken. `predicted`: slots of nodes."""
        self._allocator.check_integrity()
        self._cache.check_integrity()
        own = [*predicted, *(slot for holding in holdings for slot in holding.own())]
        assert len(set(own)) == len(own) == self._allocator.num_used - self._cache.num_slots


def _num_leading(shared: bytearray) -> int:
    own = shared.find(0)
    return len(shared) if own < 0 else own
