"""Tokens whose K and V are still in the pool: a radix tree, whose ends are given up when their slots are wanted. Pure.

A request that begins as another did need not have that part computed again: the next turn of a conversation, or
another one under the same instructions. After RadixAttention (SGLang, arXiv 2312.07104); here slots are named one by
one, so a prefix may end after any token.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_VERSIONS = itertools.count()  # of all caches that there are one after the other


@dataclass(slots=True, eq=False)
class Run:
    """Tokens that follow on those of `before`, and where their K and V are. The draft model's are there for the first
    `drafted`. `holders` count the requests that read them, or any that follow."""

    tokens: list[int]
    slots: list[int]
    before: Run | None
    drafted: int = 0
    used: int = 0  # when it was looked at last
    holders: int = 0
    known: bool = True  # whether it can be found
    after: dict[int, Run] = field(default_factory=dict)  # by the first token

    def path(self) -> list[Run]:
        """From the first run of its tokens to this one; empty for none."""
        runs, run = [], self
        while run.before is not None:
            runs.append(run)
            run = run.before
        return runs[::-1]

    def all_slots(self) -> list[int]:
        """Of all tokens up to its end."""
        return [slot for run in self.path() for slot in run.slots]

    def num_drafted(self) -> int:
        """Tokens whose K and V the draft model has, of all up to its end, from the first on."""
        total = 0
        for run in self.path():
            total += run.drafted
            if run.drafted < len(run.tokens):
                break
        return total


class Prefix(NamedTuple):
    """The longest known beginning of some tokens: `last` of its runs, how many they are, and how many of these running
    requests hold."""

    last: Run
    length: int
    held: int


class PrefixCache:
    """Owns the slots in it. Runs without a holder are idle, and may be given up."""

    def __init__(self) -> None:
        self._root = Run([], [], None)
        self._time = 0
        self._change()
        self.num_slots = 0
        self.num_idle = 0  # of these slots

    def find(self, tokens: list[int], end: int | None = None, known: Prefix | None = None) -> Prefix:
        """The longest beginning of `tokens`, or of the first `end` of them, that is known. At least `known` is."""
        self._time += 1
        run, length, held = known or (self._root, 0, 0)
        end = len(tokens) if end is None else end
        while length < end and (found := run.after.get(tokens[length])) is not None:
            common = _common(found.tokens, tokens, length, end)
            run = found if common == len(found.tokens) else _split(found, common)
            run.used = self._time
            length += common
            held += common if run.holders else 0
        return Prefix(run, length, held)

    def forget(self, run: Run) -> None:
        """Let nobody find these tokens again, nor any that go on from their first run. Who holds them may go on."""
        if not (path := run.path()) or not run.known:
            return
        first = path[0]
        self._time += 1
        del self._root.after[first.tokens[0]]
        first.tokens[0] = -self._time  # which no request has
        self._root.after[first.tokens[0]] = first
        for each in _below(first):
            each.known, each.used = False, 0
        self._change()

    def _change(self) -> None:
        self.version = next(_VERSIONS)  # what was found in another one may not be there, or be all

    def hold(self, run: Run) -> None:
        """A request reads this run and those before it, until it is let go."""
        self._change()
        for each in run.path():
            self.num_idle -= 0 if each.holders else len(each.slots)
            each.holders += 1

    def let_go(self, run: Run) -> None:
        """The opposite of `hold`."""
        self._change()
        for each in run.path():
            each.holders -= 1
            self.num_idle += 0 if each.holders else len(each.slots)

    def add(self, before: Run, tokens: Sequence[int], slots: Sequence[int], drafted: int = 0) -> Run:
        """Take over slots, of one or more tokens that follow on `before`, where `find` found no more of them."""
        assert len(tokens) == len(slots) > 0
        assert tokens[0] not in before.after
        run = Run(list(tokens), list(slots), before, drafted, self._time)
        self._change()
        before.after[tokens[0]] = run
        self.num_slots += len(slots)
        self.num_idle += len(slots)
        return run

    def note_drafted(self, run: Run, count: int) -> None:
        """The draft model has computed the first `count` tokens up to this run, into these slots."""
        for each in run.path():
            each.drafted = max(each.drafted, min(count, len(each.tokens)))
            if (count := count - len(each.tokens)) <= 0:
                return

    def forget_draft(self) -> None:
        """The draft model's KV is empty."""
        for run in self._runs():
            run.drafted = 0

    def evict(self, count: int) -> list[int]:
        """Give up `count` slots, or all that are idle, from the ends that were not looked at for the longest time."""
        self._change()
        ends = [(run.used, id(run), run) for run in self._runs() if not run.holders and not run.after]
        heapq.heapify(ends)
        freed: list[int] = []
        while ends and len(freed) < count:
            _, _, run = heapq.heappop(ends)
            first, before = run.tokens[0], run.before
            assert before is not None
            kept = max(0, len(run.slots) - (count - len(freed)))
            freed += run.slots[kept:]
            del run.slots[kept:], run.tokens[kept:]
            run.drafted = min(run.drafted, kept)
            if not kept:
                del before.after[first]
                if before is not self._root and not before.after and not before.holders:
                    heapq.heappush(ends, (before.used, id(before), before))
        self.num_slots -= len(freed)
        self.num_idle -= len(freed)
        return freed

    def _runs(self) -> Iterator[Run]:
        return (run for first in self._root.after.values() for run in _below(first))

    def check_integrity(self) -> None:
        """Raise `AssertionError` where an invariant is broken."""
        runs = list(self._runs())
        slots = [slot for run in runs for slot in run.slots]
        assert len(set(slots)) == len(slots) == self.num_slots
        assert self.num_idle == sum(len(run.slots) for run in runs if not run.holders)
        for run in runs:
            assert run.before is not None
            assert run.before.after[run.tokens[0]] is run
            assert len(run.tokens) == len(run.slots) >= run.drafted >= 0
            assert run.holders >= sum(each.holders for each in run.after.values())


def _below(first: Run) -> Iterator[Run]:
    """This run and all that follow."""
    stack = [first]
    while stack:
        run = stack.pop()
        yield run
        stack.extend(run.after.values())


def _common(run: list[int], tokens: list[int], at: int, end: int) -> int:
    """How many tokens of a run are those from `at` on, up to `end`."""
    following = tokens[at : min(end, at + len(run))]
    if run == following:
        return len(run)
    pairs = enumerate(zip(run, following, strict=False))
    return next((i for i, (ours, theirs) in pairs if ours != theirs), len(following))


def _split(run: Run, length: int) -> Run:
    """A new run of the first `length` tokens, before what is left of this one: who holds it holds both."""
    first = Run(run.tokens[:length], run.slots[:length], run.before, min(run.drafted, length), run.used, run.holders)
    assert run.before is not None
    run.before.after[first.tokens[0]] = first
    run.tokens, run.slots, run.before = run.tokens[length:], run.slots[length:], first
    run.drafted = max(0, run.drafted - length)
    first.after[run.tokens[0]] = run
    return first
