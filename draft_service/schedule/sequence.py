"""One request while it is decoded: its certain tokens, its prediction tree, and what each consumer knows of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from draft_service.generation import GenerationRequest, RequestStatistics
from draft_service.schedule.prefix_cache import Prefix
from draft_service.schedule.slot_pool import Holding, SlotPool
from draft_service.schedule.suspicion import Suspicion
from pipedec.model.grammar import Matcher
from pipedec.recall import Recall
from pipedec.sampling_params import SamplingParams
from pipedec.tree import NO_SLOT, Advance, Node, PredictionTree
from pipedec.wire.messages import Close, Commit, Op, Open, Poison, Prefill, Reuse, Row

MOST_REUSED = 2**16  # tokens of one batch, whose header has a limit,
MOST_GRAMMAR = 2**18  # and bytes of grammars, of which
MOST_GRAMMARS = 8  # are compiled by the last stage before it goes on


@dataclass(slots=True)
class Channel:
    """What one consumer of batches (the pipeline, or the draft model) has been told of a sequence.

    `computed[i]` says that the consumer has computed certain token i already, as a tree row or for another request, so
    that it needs only be committed; the others are prefilled. `committed` counts the certain tokens on the consumer's
    list.
    """

    computed: list[bool]
    opened: bool = False
    committed: int = 0


@dataclass(slots=True)
class Budget:
    """Tokens that one batch may still prefill, and that it may reuse; and bytes of grammars, and how many of these."""

    prefill: int
    reuse: int = MOST_REUSED
    grammar: int = MOST_GRAMMAR
    grammars: int = MOST_GRAMMARS

    @classmethod
    def beside(cls, ops: Iterable[Op], prefill: int) -> Budget:
        """What a batch still has room for when these ops wait for it already."""
        sizes = [len(op.sampling.grammar.encode()) for op in ops if isinstance(op, Open) and op.sampling.grammar]
        return cls(prefill, grammar=MOST_GRAMMAR - sum(sizes), grammars=MOST_GRAMMARS - len(sizes))

    def take_grammar(self, grammar: str) -> bool:
        """Whether there is room for it; then it is taken."""
        size = len(grammar.encode())
        if size > self.grammar or (size and not self.grammars):
            return False
        self.grammar -= size
        self.grammars -= bool(size)
        return True


@dataclass(slots=True)
class Waiting:
    """A request that has no place in the pipeline yet, or lost it; `output` is what was emitted already."""

    key: int
    request: GenerationRequest
    output: list[int] = field(default_factory=list)
    statistics: RequestStatistics = field(default_factory=RequestStatistics)
    suspicion: Suspicion = field(default_factory=Suspicion)
    started: bool = False  # whether it had a place before,
    counted: bool = False  # and was prefilled whole
    known: Prefix | None = None  # of its certain tokens, when it last asked for a place,
    seen: int = -1  # and in which version of the pool

    @property
    def given(self) -> list[int]:
        """The certain tokens before the cursor."""
        return [*self.request.prompt, *self.output][:-1]

    @property
    def num_held(self) -> int:
        """How many of these lie in slots that running requests hold, as far as is known."""
        return 0 if self.known is None else self.known.held

    @property
    def num_given(self) -> int:
        """How many these are."""
        return len(self.request.prompt) + len(self.output) - 1


class Sequence:
    """A request being decoded, from (re)start to finish.

    The certain tokens are the prompt and the output; the last of them is the tree's root, the cursor. `holding` has
    the KV slots of all but the root, whose slot is its node's.
    """

    def __init__(self, id: int, entry: Waiting, holding: Holding) -> None:
        self.id = id  # in messages; a restart takes a new one, so that nothing old can be mistaken for new
        self.key = entry.key  # of the client's request
        self.request, self.output = entry.request, entry.output
        self.statistics, self.suspicion = entry.statistics, entry.suspicion
        self.tokens = [*self.request.prompt, *self.output]
        self.text = Recall(self.tokens)
        self.matcher: Matcher | None = None  # of its grammar, once `Guidance` has looked at it
        self.holding = holding
        self.num_given = entry.num_given  # certain tokens, when it was (re)started, before the cursor
        self.tree = PredictionTree(self.tokens[-1], len(self.tokens) - 1)
        self.deepest = self.tree.root.position - 1  # the last position of which a row was sent, below this cursor
        self.target = self._fresh_channel()
        self.draft = self._fresh_channel()
        self._counted, self._is_first = entry.counted, not entry.started
        self._shares = False  # what it was given
        self._reuse(range(holding.shared.count(1)))

    @classmethod
    def admitted(cls, id: int, entry: Waiting, pool: SlotPool, spare: int) -> Sequence | None:
        """With slots for what it was given; None unless `spare` others are left."""
        if entry.known is None or entry.seen != pool.version:
            trusted = entry.given if entry.suspicion.speculates else []
            entry.known, entry.seen = pool.find(trusted), pool.version
        holding = pool.admit(entry.num_given, entry.known, spare)
        return None if holding is None else cls(id, entry, holding)

    def _fresh_channel(self) -> Channel:
        return Channel([False] * (len(self.tokens) - 1))

    @property
    def num_prefill(self) -> int:
        """Certain tokens before the cursor."""
        return len(self.tokens) - 1

    @property
    def num_computed(self) -> int:
        """Certain tokens, from the first on, whose K and V the pipeline computes, if all that it was told is sent."""
        given = self.target.committed >= self.num_given
        return self.num_prefill if given else self.target.committed

    @property
    def last_position(self) -> int:
        """The last position whose output can still be wanted."""
        return len(self.request.prompt) + self.request.max_tokens - 2

    @property
    def is_predictable(self) -> bool:
        """Whether predictions below the cursor can be of use, and are allowed."""
        return self.tree.root.position < self.last_position and self.suspicion.speculates

    def forget_draft(self) -> None:
        """The draft model starts anew: it must be given everything again."""
        self.draft = self._fresh_channel()
        self.holding.noted = 0
        self.tree.forget_drafts()

    def adopt(self, pool: SlotPool) -> None:
        """Reuse what was computed for other requests since this one had its place, as far as nobody was told yet."""
        told = self.target.committed
        if told < self.num_given and self.holding.seen != pool.version and self.suspicion.speculates:
            self._reuse(pool.adopt(self.holding, self.tokens, told, self.num_given))

    def _reuse(self, known: range) -> None:
        self.target.computed[known.start : known.stop] = [True] * len(known)
        if self._is_first:
            self.statistics.reused = self.holding.shared.count(1)

    def notice(self, pool: SlotPool) -> None:
        """Let the draft model reuse what it has computed for other requests by now."""
        told = self.draft.committed
        if told < self.num_given and (known := min(pool.num_drafted(self.holding), self.num_given)) > told:
            self.draft.computed[told:known] = [True] * (known - told)

    def is_caught_up(self, channel: Channel) -> bool:
        """Whether everything before the cursor is committed, so that tree rows make sense."""
        return channel.opened and channel.committed >= self.num_prefill

    def share(self, pool: SlotPool) -> bool:
        """Once the pipeline has all that this request was given, others can begin with the same. Whether it has so for
        the first time of this request."""
        if self._shares or self.target.committed < self.num_given:
            return False
        self._shares = True
        pool.share(self.holding, self.tokens[: self.num_given], min(self.draft.committed, self.num_given))
        first, self._counted = not self._counted, True
        return first

    def catch_up(self, channel: Channel, cursor_computed: bool, budget: Budget) -> list[Op]:
        """Ops that bring a channel's committed list up to date, as far as the budget goes, from which they are taken.
        The cursor is committed too once it was computed. Of what the request was given, the draft model is told nothing
        before the pipeline is: what neither was told may yet be found computed."""
        ops: list[Op] = []
        if not channel.opened:
            sampling = self.request.sampling if channel is self.target else SamplingParams()
            if not budget.take_grammar(sampling.grammar):
                return ops
            channel.opened = True
            ops.append(Open(self.id, sampling, len(self.request.prompt)))
        start, end = channel.committed, self.num_prefill
        if channel is self.draft and self.target.committed < self.num_given:
            end = self.target.committed
        while start < end:
            computed, given = channel.computed[start], start < self.num_given
            limit = min(end, self.num_given) if given else end
            if not computed:
                limit = min(limit, start + budget.prefill)
            elif given:
                limit = min(limit, start + budget.reuse)
            stop = start
            while stop < limit and channel.computed[stop] == computed:
                stop += 1
            if stop == start:  # the budget is spent
                break
            slots, tokens = tuple(self.holding.slots[start:stop]), tuple(self.tokens[start:stop])
            if not computed:
                ops.append(Prefill(self.id, start, tokens, slots))
                budget.prefill -= stop - start
            elif given:
                ops.append(Reuse(self.id, start, tokens, slots))
                budget.reuse -= stop - start
            else:
                ops.append(Commit(self.id, slots))
            start = stop
        if start == self.num_prefill and cursor_computed:
            ops.append(Commit(self.id, (self.tree.root.slot,)))
            start += 1
        channel.committed = start
        return ops

    def closed(self, channel: Channel, ops: list[Op]) -> list[Op]:
        """What a channel is still to be told once this request is over: if it was never told of it, nothing."""
        waits = any(isinstance(op, Open) and op.request == self.id for op in ops)
        rest = [op for op in ops if isinstance(op, Poison) or op.request != self.id]
        return [*rest, Close(self.id)] if channel.opened and not waits else rest

    def row(self, node: Node, channel: Channel) -> Row:
        """The node as a row of a channel's batch; ancestors that are committed there are left out."""
        parent, root = node.parent, self.tree.root
        if parent is not None and not node.above:
            node.above = (parent.slot, *parent.above[: parent.position - root.position])
        height = node.position - root.position - (channel.committed == len(self.tokens))
        return Row(self.id, node.id, node.parent_id, node.token, node.position, node.slot, node.above[:height])

    def advance(self, token: int) -> Advance:
        """The target decided a token: it is certain now and becomes the cursor."""
        step = self.tree.advance(token)
        self.holding.append(step.accepted.slot)
        self.target.computed.append(True)
        self.draft.computed.append(step.accepted.drafted)
        self.tokens.append(token)
        self.output.append(token)
        self.suspicion.decide(len(self.output))
        if step.hit:
            self.statistics.hits += 1
        else:
            self.statistics.misses += 1
            self.deepest = self.tree.root.position - 1
        return step

    def meet_loss(self, *, alone: bool) -> None:
        """The epoch was lost with rows of this sequence in flight; `alone`: with those of no other."""
        self.suspicion.lose(len(self.output), since_start=self.num_prefill - self.num_given, alone=alone)

    def suspended(self) -> Waiting:
        """What it needs to be started again, later or in another epoch."""
        return Waiting(
            self.key, self.request, self.output, self.statistics, self.suspicion, started=True, counted=self._counted
        )

    def mark_sent(self, node: Node) -> bool:
        """The node enters the pipeline. Whether it is the first one of its level."""
        self.tree.mark_sent(node)
        opens = node.position > self.deepest
        self.deepest = max(self.deepest, node.position)
        return opens

    def node_slots(self) -> list[int]:
        """The slots of its cursor and predictions."""
        return [node.slot for node in self.tree.root.subtree() if node.slot != NO_SLOT]

    def check_integrity(self) -> None:
        """Raise `AssertionError` where an invariant is broken."""
        self.tree.check_integrity()
        assert len(self.holding.slots) == len(self.holding.shared) == len(self.tokens) - 1
        assert self.tree.root.position == len(self.tokens) - 1
        assert self.tree.root.token == self.tokens[-1]
        for channel in (self.target, self.draft):
            assert len(channel.computed) == len(self.tokens) - 1
            assert channel.committed <= len(self.tokens)
        assert self.draft.committed <= self.target.committed or self.target.committed >= self.num_given
