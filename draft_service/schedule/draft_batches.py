"""The draft model's own stream of batches: what it is given of every sequence, and what it answered. No sockets."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

from draft_service.schedule.guidance import Guidance, Guides
from draft_service.schedule.sequence import Budget, Sequence
from pipedec.metrics.head import HeadCounts
from pipedec.model.grammar import Grammars
from pipedec.policy import Policy
from pipedec.proposals import Proposals
from pipedec.recall import SHORTEST, SURE
from pipedec.tree import Node
from pipedec.wire.messages import Batch, Op, Rows

TakeSlot = Callable[[Sequence, Node], bool]  # gives a node a KV slot if it has none; False when there is no room


class DraftRun(NamedTuple):
    """What the draft model is asked for."""

    batch: Batch
    guides: Guides


class DraftBatches:
    """At most one is with the draft model at a time. `ops` collects what it must be told with the next one."""

    def __init__(
        self, policy: Policy, counts: HeadCounts, grammars: Grammars | None, prefill_chunk: int, max_rows: int
    ) -> None:
        self._policy, self._counts, self._guidance = policy, counts, Guidance(grammars)
        self._prefill_chunk, self._max_rows = prefill_chunk, max_rows
        self.available = policy.children > 0
        self._epoch = 0
        self.reset()

    @property
    def busy(self) -> bool:
        """Whether an answer is awaited."""
        return self._job is not None

    def reset(self) -> None:
        """The draft model's KV is empty: batches begin anew, and answers to old ones mean nothing."""
        self._epoch += 1
        self._step = 0
        self.ops: list[Op] = []
        self._job: list[tuple[Sequence, Node]] | None = None

    def recall(self, sequences: Collection[Sequence]) -> None:
        """Put into the trees what is foreseen with a draft model or without one: what the text repeats, and what
        a grammar leaves no choice of."""
        least = SURE if self.available else SHORTEST
        for sequence in sequences:
            forced = partial(self._guidance.forced, sequence)
            self._policy.recall(sequence.tree, sequence.text, least, sequence.last_position, forced)

    def lose(self) -> None:
        """The draft model is gone, until `restore`."""
        self.available = False
        self._job = None

    def restore(self, sequences: Collection[Sequence]) -> None:
        """It is back, and knows nothing of these sequences."""
        self.available = self._policy.children > 0
        self.reset()
        for sequence in sequences:
            sequence.forget_draft()

    def compose(self, sequences: Collection[Sequence], take_slot: TakeSlot) -> DraftRun | None:
        """The next run, or None while it is busy, gone, or there is nothing to evaluate."""
        if not self.available or self.busy:
            return None
        budget = Budget(self._prefill_chunk)
        sequences = [sequence for sequence in sequences if sequence.is_predictable]
        for sequence in sequences:
            self.ops += sequence.catch_up(sequence.draft, sequence.tree.root.drafted, budget)
        job = self._nodes(sequences, take_slot)
        if not job and budget.prefill == self._prefill_chunk:
            return None
        self._counts.draft_rows += len(job)
        rows = [sequence.row(node, sequence.draft) for sequence, node in job]
        batch = Batch(self._epoch, self._step, tuple(self.ops), Rows.of(rows))
        self.ops, self._job = [], job
        self._step += 1
        return DraftRun(batch, self._guidance.guides(job))

    def answered(self, epoch: int, proposals: Proposals) -> None:
        """Children for the rows of the run under way; those of an old epoch change nothing."""
        if epoch != self._epoch or self._job is None:
            return
        job, self._job = self._job, None
        for row, ((sequence, node), children) in enumerate(zip(job, self._policy.judge(proposals), strict=True)):
            wanted = node.position < sequence.last_position
            node.proposed = (proposals, row) if wanted else None
            sequence.tree.grow(node, children if wanted else ())

    def _nodes(self, sequences: Collection[Sequence], take_slot: TakeSlot) -> list[tuple[Sequence, Node]]:
        job: list[tuple[Sequence, Node]] = []
        ready = (s for s in sequences if s.is_caught_up(s.draft))
        by_tree = {id(s.tree): s for s in ready}
        for tree, chosen in self._policy.to_draft([s.tree for s in by_tree.values()]):
            sequence = by_tree[id(tree)]
            # Ancestors that it was never given, as when it was away or the text recalled them, go first.
            missing = [chosen]
            while (above := missing[-1].parent) is not None and not above.drafted:
                missing.append(above)
            for node in reversed(missing):
                if len(job) >= self._max_rows or not take_slot(sequence, node):
                    return job
                node.drafted = True
                job.append((sequence, node))
        return job
