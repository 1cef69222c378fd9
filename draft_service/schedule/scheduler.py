"""Composes every batch: of certain tokens first, then of predictions that the policy ranks. No sockets, no clock.

The scheduler is told what happened (`submit`, `abort`, `on_started`, `on_verdict`, `on_proposals`) and is asked what
to do next (`compose` for the pipeline, `compose_draft` for the draft model, `take_cancel` for early cancellation).
It is the only owner of KV slots and of prediction trees.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from collections.abc import Sequence as Seq
from dataclasses import dataclass

from draft_service.generation import FinishReason, GenerationRequest, TokenEvent
from draft_service.schedule.backlog import Backlog
from draft_service.schedule.draft_batches import DraftBatches, DraftRun
from draft_service.schedule.in_flight import InFlight
from draft_service.schedule.sequence import Budget, Sequence, Waiting
from draft_service.schedule.slot_pool import SlotPool
from pipedec.errors import PipeDecError, RequestError, UnfinishableError
from pipedec.metrics.head import HeadCounts
from pipedec.model.grammar import Grammars
from pipedec.policy import Policy
from pipedec.proposals import Proposals
from pipedec.tree import NO_SLOT, Node
from pipedec.wire.messages import Batch, Cancel, Op, Poison, Prefill, Reuse, Row, Rows, TokenLogprobs, Verdict

Output = tuple[int, TokenEvent]  # (key of the request, event)


@dataclass(frozen=True, slots=True)
class Limits:
    """`stages` bounds what is in flight; `prefill_chunk` tokens and `max_rows` predictions fit in one batch."""

    stages: int
    max_sequences: int = 16
    prefill_chunk: int = 256
    max_rows: int = 256
    prefix_cache: bool = True  # tokens that were computed stay known until their slots are wanted
    poison: bool = False  # tests: freed slots are filled with NaN everywhere


class Scheduler:
    """State of all requests of one pipeline. Without an epoch nothing is composed, and requests wait."""

    def __init__(self, limits: Limits, policy: Policy, grammars: Grammars | None = None) -> None:
        self.limits = limits
        self.policy = policy
        self.counts = HeadCounts()
        self.epoch: int | None = None
        self.running: dict[int, Sequence] = {}  # by id, oldest first
        self.waiting = Backlog()
        self._failed: list[tuple[int, PipeDecError]] = []
        self._admitted: list[Sequence] = []
        self._next_id = 0
        self._draft_batches = DraftBatches(policy, self.counts, grammars, limits.prefill_chunk, limits.max_rows)
        self._reset_pipeline(num_slots=1)

    # -- life of requests and epochs ----------------------------------------------------------------------------

    def submit(self, key: int, request: GenerationRequest) -> None:
        """Queue a request; its events come out of `on_verdict` under `key`."""
        self.waiting.add(Waiting(key, request))

    def abort(self, key: int) -> None:
        """The client is gone: free everything at once. Unknown keys (finished meanwhile) are fine."""
        self._take(key)

    def pause(self, key: int) -> None:
        """Put a request aside until `resume`, which continues it exactly; meanwhile it holds nothing."""
        if (entry := self._take(key)) is not None:
            self.waiting.pause(entry)

    def resume(self, key: int) -> None:
        """A paused request wants to go on. Unknown keys are fine."""
        self.waiting.resume(key)

    def _take(self, key: int) -> Waiting | None:
        """Take a request out of the pipeline, or of those that wait for it."""
        for sequence in [each for each in self.running.values() if each.key == key]:
            self._release(sequence)
            return sequence.suspended()
        return self.waiting.remove(key)

    def start_epoch(self, epoch: int, num_slots: int) -> None:
        """A new formation with empty KV: every running request starts again from prompt and emitted tokens."""
        for sequence in reversed(self.running.values()):
            self._bury(sequence, sequence.tree.root.subtree())
            self.waiting.put_back(sequence.suspended())
        self.counts.resumptions += len(self.running)
        self.running.clear()
        self.epoch = epoch
        self._reset_pipeline(num_slots)
        self._draft_batches.reset()

    def stop_epoch(self) -> None:
        """The formation is lost. Requests stay as they are until `start_epoch`, but for one that must be the cause."""
        self.epoch = None
        caught = self._in_flight.lose()
        for sequence in [s for s in self.running.values() if s.key in caught]:
            sequence.meet_loss(alone=len(caught) == 1)
            if sequence.suspicion.is_guilty:
                self._fail(sequence, "the pipeline breaks down whenever it computes this request, even alone")

    def take_failed(self) -> list[tuple[int, PipeDecError]]:
        """Requests that cannot be finished, by key, since the last call. Nothing more comes of them."""
        failed, self._failed = self._failed, []
        return failed

    def _fail(self, sequence: Sequence, reason: str) -> None:
        self._release(sequence, keep=False)
        self.counts.given_up += 1
        self._failed.append((sequence.key, UnfinishableError(reason)))

    def _reset_pipeline(self, num_slots: int) -> None:
        self._slots = SlotPool(num_slots, self.limits.prefix_cache, self._on_free)
        self._in_flight = InFlight(self.limits.stages)
        self._reserved = 0  # slots that predictions leave free
        self._ops: list[Op] = []

    def _on_free(self, slots: Seq[int]) -> None:
        if self.limits.poison:
            for ops in (self._ops, self._draft_batches.ops):
                ops.append(Poison(tuple(slots)))

    # -- the pipeline -------------------------------------------------------------------------------------------

    @property
    def num_slots(self) -> int:
        return self._slots.num_slots

    @property
    def num_slots_used(self) -> int:
        """By requests; tokens that are merely known do not count."""
        return self._slots.num_used

    @property
    def in_flight(self) -> int:
        """Batches in the pipeline."""
        return len(self._in_flight)

    def compose(self) -> Batch | None:
        """The next batch, or None while there is nothing to send or no credit to send it."""
        if self.epoch is None or not self._in_flight.has_credit:
            return None
        if not self._in_flight.is_awaited and not self._all_dead():
            return None
        self._admit()
        self._reserved = self._reserve()
        self._catch_up_target()
        certain = self._certain_rows()
        predicted = self._predicted_rows()
        rows = certain + predicted
        prefilled = sum(len(op.tokens) for op in self._ops if isinstance(op, Prefill))
        if not rows and not any(isinstance(op, Prefill | Reuse) for op in self._ops):
            return None  # the ops wait for the next batch
        carried = {self.running[row.request] for row in rows}
        self._count(prefilled, certain, predicted, carried)
        carried |= {self.running[op.request] for op in self._ops if isinstance(op, Prefill)}
        batch = Batch(self.epoch, self._in_flight.step, tuple(self._ops), Rows.of(rows))
        self._ops = []
        self._in_flight.sent(sequence.key for sequence in carried)
        for sequence in carried:
            if sequence.share(self._slots):
                self.counts.prompt(len(sequence.request.prompt) - 1, sequence.statistics.reused)
        return batch

    def _all_dead(self) -> bool:
        """Whether nothing in the pipeline is worth computing: then stage 0 takes the next batch at once."""
        return bool(self.running) and all(
            not sequence.tree.root.sent and sequence.is_caught_up(sequence.target) for sequence in self.running.values()
        )

    def _admit(self) -> None:
        """Fill free places; a suspect gets them all."""
        if any(sequence.suspicion.is_suspect for sequence in self.running.values()):
            return
        while (entry := self.waiting.next()) is not None:
            while entry.suspicion.is_suspect and self.running:
                self._preempt_youngest()
            if len(self.running) >= self.limits.max_sequences:
                return
            sequence = Sequence.admitted(self._next_id, entry, self._slots, spare=len(self.running) + 2)
            if sequence is None:
                return
            self.waiting.remove(entry.key)
            self.running[self._next_id] = sequence
            self._next_id += 1
            self._admitted.append(sequence)
            if entry.suspicion.is_suspect:
                return

    def take_admitted(self) -> list[Sequence]:
        """Requests that got a place in the pipeline since the last call."""
        admitted, self._admitted = self._admitted, []
        return admitted

    def _reserve(self) -> int:
        """Slots that predictions leave free: for every sequence's cursor, and for the request whose turn it is, if it
        fits beside all that is certain. Else they would take what each verdict frees, and it would wait for ever."""
        cursors, entry = len(self.running) + 1, self.waiting.next()
        if entry is None or len(self.running) >= self.limits.max_sequences:
            return cursors
        own = sum(sequence.holding.shared.count(0) + 1 for sequence in self.running.values())
        wanted = cursors + entry.num_given - entry.num_held + 1
        return wanted if own + self._slots.num_shared + wanted <= self._slots.num_slots else cursors

    def _catch_up_target(self) -> None:
        budget = Budget.beside(self._ops, self.limits.prefill_chunk)
        for sequence in self.running.values():
            sequence.adopt(self._slots)
            self._ops += sequence.catch_up(sequence.target, sequence.tree.root.sent, budget)

    def _certain_rows(self) -> list[Row]:
        """Cursors that are due and not in the pipeline: without them nothing moves, so they always go."""
        rows = []
        for sequence in list(self.running.values()):
            root = sequence.tree.root
            due = not root.sent and sequence.is_caught_up(sequence.target)
            if not due or self._is_held(sequence):
                continue
            while self._slots.num_free == 0 and root.slot == NO_SLOT and sequence.id in self.running:
                self._preempt_youngest()  # which may hold none
            if sequence.id in self.running:
                rows.append(self._send(sequence, root))
        return [row for row in rows if row.request in self.running]

    def _is_held(self, sequence: Sequence) -> bool:
        """Whether the cursor waits for its tree; not where the draft model is gone, or has no slots to go on."""
        drafting = self._draft_batches.busy or self._slots.num_free > self._reserved
        held = drafting and self.policy.holds(sequence.tree)
        return held and self.draft_available and sequence.is_predictable

    def _predicted_rows(self) -> list[Row]:
        """None beside the end of its prompt: a prediction that overflows would spoil what others are to reuse."""
        rows: list[Row] = []
        prefilling = {op.request for op in self._ops if isinstance(op, Prefill)}
        able = (s for s in self.running.values() if s.tree.root.sent and s.is_predictable and s.id not in prefilling)
        by_tree = {id(sequence.tree): sequence for sequence in able}
        self._draft_batches.recall(by_tree.values())
        for tree, node in self.policy.to_send([s.tree for s in by_tree.values()]):
            if len(rows) >= self.limits.max_rows or not self._take_slot(sequence := by_tree[id(tree)], node):
                break
            rows.append(self._send(sequence, node))
        return rows

    def _take_slot(self, sequence: Sequence, node: Node) -> bool:
        """Give a prediction a slot, unless the free ones are reserved."""
        if node.slot == NO_SLOT and self._slots.num_free > self._reserved:
            node.slot = self._slots.take(sequence.holding.start)
        return node.slot != NO_SLOT

    def _send(self, sequence: Sequence, node: Node) -> Row:
        if node.slot == NO_SLOT:
            node.slot = self._slots.take(sequence.holding.start)
        self.counts.levels += sequence.mark_sent(node)
        return sequence.row(node, sequence.target)

    def _count(self, prefilled: int, certain: Seq[Row], predicted: Seq[Row], carried: Set[Sequence]) -> None:
        counts = self.counts
        counts.batch(prefilled, len(certain), len(predicted))
        counts.sequence_steps += len(carried)
        counts.drafts += len({row.request for row in predicted})
        for sequence in carried:
            sequence.statistics.steps += 1
            counts.tree_nodes.add(sequence.tree.num_nodes)
            counts.tree_depth.add(sequence.deepest - sequence.tree.root.position)

    def on_started(self, step: int) -> None:
        """Stage 0 will soon want the batch after `step`."""
        self._in_flight.started(step)

    def on_verdict(self, verdict: Verdict) -> list[Output]:
        """Tokens were decided: advance, prune, free. A verdict of another epoch changes nothing."""
        if verdict.epoch != self.epoch:
            return []
        self._in_flight.answered()
        outputs: list[Output] = []
        for decision in verdict.decisions:
            logprobs: Seq[TokenLogprobs | None] = decision.logprobs or [None] * len(decision.tokens)
            for token, logprob in zip(decision.tokens, logprobs, strict=True):
                sequence = self.running.get(decision.request)
                if sequence is None:  # finished or aborted while this was in flight
                    break
                if not sequence.tree.root.sent:  # no row can have decided this
                    self._put_back(sequence, keep=False)
                    break
                outputs.append((sequence.key, self._decide(sequence, token, logprob)))
            if (stuck := self.running.get(decision.request)) is not None:
                if decision.failure:
                    self._doubt(stuck, decision.failure)
                elif decision.refusal:
                    self._refuse(stuck, decision.refusal)
        return outputs

    def _doubt(self, sequence: Sequence, reason: str) -> None:
        """Its logits were not sound. A prediction that overflows spoils all rows that share its attention, as a weight
        of zero times infinity is NaN; so does a token of another prompt the beginning that both have. The target alone
        would have computed neither, so what counts is what comes out without either, in slots that are clean."""
        self._slots.forget(sequence.holding)
        if not sequence.suspicion.speculates:
            return self._fail(sequence, reason)
        sequence.suspicion.forswear()
        self._put_back(sequence, keep=False)

    def _refuse(self, sequence: Sequence, reason: str) -> None:
        """What it demands of its answer leaves no token to choose, after these tokens always."""
        self._release(sequence)
        self._failed.append((sequence.key, RequestError(reason, code="unfinishable")))

    def _decide(self, sequence: Sequence, token: int, logprobs: TokenLogprobs | None) -> TokenEvent:
        self.policy.observe(sequence.tree.root, token)
        step = sequence.advance(token)
        if step.hit:
            self.counts.hit(step.cursor.ahead)
        else:
            self.counts.misses += 1
        self._slots.free([node.slot for node in step.dead if node.slot != NO_SLOT])
        self._bury(sequence, step.dead)
        finish: FinishReason | None = "length" if len(sequence.output) >= sequence.request.max_tokens else None
        if token in sequence.request.end_tokens:
            finish = "stop"
        if finish is not None:
            self._release(sequence)
        return TokenEvent(token, logprobs, finish, sequence.statistics)

    def _preempt_youngest(self) -> None:
        """No slot is left for a cursor: the newest sequence goes back to the queue, and resumes later."""
        self.counts.preemptions += 1
        self._put_back(next(reversed(self.running.values())))

    def _put_back(self, sequence: Sequence, *, keep: bool = True) -> None:
        self._release(sequence, keep=keep)
        self.waiting.put_back(sequence.suspended())

    def _release(self, sequence: Sequence, *, keep: bool = True) -> None:
        """Its place is for others. Unless told otherwise, what was computed for it stays known."""
        del self.running[sequence.id]
        # Its slots may be given to a row of the batch being composed: a pending prefill must not write them too.
        pending = [op.start for op in self._ops if isinstance(op, Prefill) and op.request == sequence.id]
        computed = min([sequence.num_computed, *pending]) if keep else 0
        self._bury(sequence, sequence.tree.root.subtree())
        self._slots.free(sequence.node_slots())
        self._slots.release(sequence.holding, sequence.tokens[:-1], computed, sequence.draft.committed)
        self._ops = sequence.closed(sequence.target, self._ops)
        self._draft_batches.ops = sequence.closed(sequence.draft, self._draft_batches.ops)

    def _bury(self, sequence: Sequence, nodes: Iterable[Node]) -> None:
        """Stages need not compute these nodes any more; what was sent of them is waste, but for a cursor."""
        sent = [node for node in nodes if node.sent]
        self._in_flight.bury([(sequence.id, node.id) for node in sent])
        self.counts.wasted_rows += len(sent) - (sequence.tree.root in sent)

    def take_cancel(self) -> Cancel | None:
        """What died in the pipeline since the last call, for the stages to skip."""
        return None if self.epoch is None else self._in_flight.take_cancel(self.epoch)

    # -- the draft model ----------------------------------------------------------------------------------------

    @property
    def draft_available(self) -> bool:
        """Whether the draft model predicts."""
        return self._draft_batches.available

    def lose_draft(self) -> None:
        """Go on without the draft model until `restore_draft`."""
        self._draft_batches.lose()

    def restore_draft(self) -> None:
        """The draft model is back, with empty KV."""
        self._draft_batches.restore(self.running.values())
        self._slots.forget_draft()

    def compose_draft(self) -> DraftRun | None:
        """The draft model's next run, or None while it is busy, absent, or there is nothing to evaluate."""
        if self.epoch is None:
            return None
        self._reserved = self._reserve()
        behind = [sequence for sequence in self.running.values() if sequence.draft.committed < sequence.num_given]
        for sequence in behind:
            sequence.notice(self._slots)
        run = self._draft_batches.compose(self.running.values(), self._take_slot)
        for sequence in behind:
            self._slots.note_drafted(sequence.holding, sequence.draft.committed)
        return run

    def on_proposals(self, epoch: int, proposals: Proposals) -> None:
        """The draft model's answer to the run of `compose_draft`, row by row; an old epoch's changes nothing."""
        self._draft_batches.answered(epoch, proposals)

    def check_integrity(self) -> None:
        """Raise `AssertionError` where an invariant is broken. For tests, and for a service that is idle."""
        running = self.running.values()
        predicted = [slot for sequence in running for slot in sequence.node_slots()]
        self._slots.check_integrity([sequence.holding for sequence in running], predicted)
        for sequence in running:
            sequence.check_integrity()
