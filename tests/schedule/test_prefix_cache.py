"""What was computed for one request is not computed again for another, and changes nothing else."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from benchmarks.simulation import Timing
from draft_service.generation import GenerationRequest
from draft_service.schedule.guidance import Guides
from draft_service.schedule.scheduler import Limits, Scheduler
from draft_service.schedule.slot_pool import Holding, SlotPool
from pipedec.policy import PolicyName, make_policy
from pipedec.proposals import Proposals
from pipedec.wire.messages import Batch, Decision, Verdict
from tests.schedule.test_scheduler import POLICIES, check, simulate
from tests.symbolic import VOCABULARY, continuation

TOKENS = st.lists(st.integers(0, 1), max_size=12)  # of two kinds, so that many begin alike


class PoolMachine(RuleBasedStateMachine):
    """A pool of few slots, beside a plain record of what was written to each. Here tokens are computed as soon as a
    place is had, and by the draft model up to any of them."""

    @initialize(num_slots=st.integers(8, 40))
    def create(self, num_slots: int) -> None:
        self.pool = SlotPool(num_slots, True, self._forget)
        self.kv: dict[int, tuple[int, ...]] = {}  # by slot: the tokens up to the one whose K and V it holds
        self.draft_kv: dict[int, tuple[int, ...]] = {}
        self.running: list[tuple[Holding, list[int]]] = []
        self.drafted: dict[int, int] = {}  # by id of a holding

    def _forget(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self.kv.pop(slot, None)
            self.draft_kv.pop(slot, None)

    @rule(tokens=TOKENS, spare=st.integers(0, 3))
    def admit(self, tokens: list[int], spare: int) -> None:
        known = self.pool.find(tokens)
        if (holding := self.pool.admit(len(tokens), known, spare)) is None:
            return
        assert self.pool.num_free >= spare
        assert known.length == holding.shared.count(1)
        self._compute(holding, tokens, known.length)
        self.running.append((holding, tokens))
        self.drafted[id(holding)] = 0

    def _compute(self, holding: Holding, tokens: list[int], start: int) -> None:
        for i in range(start, len(tokens)):
            self.kv[holding.slots[i]] = tuple(tokens[: i + 1])

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def notice(self, data: st.DataObject) -> None:
        """What is said to be the draft model's already it reads as it is."""
        holding, tokens = data.draw(st.sampled_from(self.running))
        known = self.pool.num_drafted(holding)
        for i in range(known):
            assert self.draft_kv[holding.slots[i]] == tuple(tokens[: i + 1])
        self.drafted[id(holding)] = max(known, self.drafted[id(holding)])

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def draft(self, data: st.DataObject) -> None:
        holding, tokens = data.draw(st.sampled_from(self.running))
        before = self.drafted[id(holding)]
        count = data.draw(st.integers(before, len(tokens)))
        for i in range(before, count):
            self.draft_kv[holding.slots[i]] = tuple(tokens[: i + 1])
        self.drafted[id(holding)] = count
        self.pool.note_drafted(holding, count)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        holding, tokens = data.draw(st.sampled_from(self.running))
        if tokens:
            self.pool.share(holding, tokens, self.drafted[id(holding)])

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def adopt(self, data: st.DataObject) -> None:
        """What nobody was told of yet may be another's: here nothing before `start` is."""
        holding, tokens = data.draw(st.sampled_from(self.running))
        start = data.draw(st.integers(self.drafted[id(holding)], len(tokens)))
        known = self.pool.adopt(holding, tokens, start, len(tokens))
        assert all(holding.shared[i] for i in known)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def extend(self, data: st.DataObject) -> None:
        """A token is decided: its slot was a node's."""
        holding, tokens = data.draw(st.sampled_from(self.running))
        if self.pool.num_free:
            holding.append(self.pool.take(holding.start))
            tokens.append(data.draw(st.integers(0, 1)))
            self._compute(holding, tokens, len(tokens) - 1)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        place = data.draw(st.integers(0, len(self.running) - 1))
        holding, tokens = self.running.pop(place)
        computed = data.draw(st.sampled_from([0, len(tokens) // 2, len(tokens)]))
        self.pool.release(holding, tokens, computed, self.drafted.pop(id(holding)))

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """Nobody begins with what this one shares; who does already goes on."""
        holding, tokens = data.draw(st.sampled_from(self.running))
        was_known = holding.last.known and holding.last.slots
        self.pool.forget(holding)
        if was_known:
            assert self.pool.find(tokens).length == 0

    @rule()
    def forget_draft(self) -> None:
        self.draft_kv.clear()
        self.pool.forget_draft()
        for holding, _ in self.running:
            holding.noted = self.drafted[id(holding)] = 0

    @invariant()
    def everybody_reads_their_own_tokens(self) -> None:
        if not hasattr(self, "pool"):
            return
        self.pool.check_integrity([holding for holding, _ in self.running], ())
        for holding, tokens in self.running:
            for i, slot in enumerate(holding.slots):
                assert self.kv[slot] == tuple(tokens[: i + 1])

    def teardown(self) -> None:
        for holding, tokens in self.running:
            self.pool.release(holding, tokens, len(tokens), self.drafted[id(holding)])
        assert self.pool.num_used == 0


TestPool = PoolMachine.TestCase
TestPool.settings = settings(max_examples=150, stateful_step_count=40, deadline=None, derandomize=True)


class Seen(list[int]):
    """Tokens that count how many of them were looked at."""

    looked_at = 0

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        self.looked_at += len(found) if isinstance(index, slice) else 1
        return found


def test_what_one_shares_already_is_not_looked_through_again() -> None:
    """As often as anything changes, everybody who waits to be prefilled looks for more to share."""
    common = list(range(5000))
    pool = SlotPool(20_000, True, lambda slots: None)
    first = pool.admit(len(common), pool.find(common), 0)
    assert first is not None
    pool.share(first, common, 0)
    tokens = Seen([*common, 1, 2, 3])
    waiting = pool.admit(len(tokens), pool.find(tokens), 0)
    assert waiting is not None
    tokens.looked_at = 0
    for _ in range(100):
        assert not pool.adopt(waiting, tokens, len(common), len(tokens))
    other = pool.admit(5002, pool.find([*common, 1, 2]), 0)
    assert other is not None
    pool.share(other, [*common, 1, 2], 0)
    assert pool.adopt(waiting, tokens, len(common), len(tokens)) == range(5000, 5002)
    assert tokens.looked_at < 1000
    pool.check_integrity([first, waiting, other], ())


@dataclass
class Counted:
    """A draft that is looked at."""

    reset: Callable[[int], None]
    propose: Callable[[Batch, Guides], Proposals]


def prompts(count: int, length: int, seed: int) -> list[tuple[int, ...]]:
    rng = random.Random(seed)
    return [tuple(rng.randrange(VOCABULARY) for _ in range(length)) for _ in range(count)]


@pytest.mark.parametrize("policy", POLICIES)
def test_the_next_turn_of_a_conversation_computes_what_is_new(policy: PolicyName) -> None:
    simulation = simulate(policy, 3, 0.6)
    (prompt, question) = prompts(2, 20, seed=1)
    answer = tuple(continuation(prompt, 15))
    first, second = GenerationRequest(prompt, 15), GenerationRequest(prompt + answer + question, 15)
    simulation.run({0: first})
    before = simulation.scheduler.counts.prefill_rows
    simulation.run({1: second})
    check(simulation, {0: first, 1: second})
    # The answer's last token was decided, but never computed; the question's last is the cursor.
    assert simulation.scheduler.counts.prefill_rows - before == 1 + len(question) - 1
    assert simulation.generated[1].statistics is not None
    assert simulation.generated[1].statistics.reused == len(prompt + answer) - 1
    counts = simulation.scheduler.counts
    assert counts.prefix_hits == len(prompt + answer) - 1
    assert counts.prefix_queries == len(first.prompt) - 1 + len(second.prompt) - 1


def test_requests_that_begin_alike_at_the_same_time_compute_the_beginning_once() -> None:
    """They all have a place from the start; who waits for its turn to be prefilled uses what was computed meanwhile."""
    (prompt,) = prompts(1, 41, seed=2)
    load = {key: GenerationRequest((*prompt[:-1], key), 6) for key in range(4)}
    simulation = simulate("adaptive", 4, 0.6, prefill_chunk=8)
    simulation.run(load)
    check(simulation, load)
    assert simulation.scheduler.counts.prefill_rows == 40


def test_who_was_half_prefilled_goes_on_with_what_became_known() -> None:
    (prompt,) = prompts(1, 31, seed=3)
    load = {key: GenerationRequest((*prompt[:-1], key), 6) for key in range(2)}
    simulation = simulate("adaptive", 2, 0.6, prefill_chunk=20)  # the second batch has room for ten of the second's
    simulation.run(load)
    check(simulation, load)
    assert simulation.scheduler.counts.prefill_rows == 40


@pytest.mark.parametrize("seed", range(8))
def test_the_draft_is_told_no_more_than_the_pipeline(seed: int) -> None:
    """Else it would have read slots that were given away when better ones became known."""
    rng = random.Random(seed)
    (prompt,) = prompts(1, rng.randint(30, 100), seed)
    load = {0: GenerationRequest(prompt, 1), 1: GenerationRequest((*prompt[:-1], (prompt[-1] + 1) % VOCABULARY), 40)}
    timing = Timing(draft=lambda rows: rng.choice([0.0001, 0.005, 0.03]))
    simulation = simulate("adaptive", rng.randint(1, 5), 0.7, 400, timing, prefill_chunk=rng.randint(5, 40))
    simulation.run(load)
    check(simulation, load)


@pytest.mark.parametrize("comes_back", [True, False])
def test_the_draft_computes_a_common_beginning_once(comes_back: bool) -> None:
    (prompt,) = prompts(1, 400, seed=8)
    timing = Timing(draft=lambda rows: 0.02)
    simulation = simulate("adaptive", 4, 0.7, 4000, timing, prefill_chunk=32)
    draft, scheduler, prefilled = simulation.draft, simulation.scheduler, list[int]()
    assert draft is not None
    propose = draft.propose

    def counted(batch: Batch, guides: Guides) -> Proposals:
        prefilled.append(batch.num_prefill)
        return propose(batch, guides)

    simulation.draft = Counted(draft.reset, counted)
    if comes_back:
        simulation.run({99: GenerationRequest(prompt, 2)})
        scheduler.lose_draft()
        draft.reset(4000)
        scheduler.restore_draft()
        prefilled.clear()
    load = {key: GenerationRequest((*prompt, key), 40) for key in range(8)}
    simulation.run(load)
    check(simulation, load)
    assert 400 <= sum(prefilled) < 1000


def test_who_shares_with_a_running_request_gets_a_place_beside_it() -> None:
    """What both read takes no room twice; predictions leave what is missing."""
    (prompt,) = prompts(1, 400, seed=9)
    simulation = simulate("adaptive", 6, 1.0, num_slots=1000, max_sequences=2)
    first = GenerationRequest(prompt, 300)
    simulation.run({0: first}, until=lambda: len(simulation.generated[0].tokens) > 90)
    second = GenerationRequest((*prompt[:-1], *(token % VOCABULARY for token in range(150))), 10)
    simulation.run({1: second}, until=lambda: bool(simulation.generated[1].tokens))
    assert len(simulation.generated[0].tokens) < 200
    simulation.run({})
    check(simulation, {0: first, 1: second})


@pytest.mark.parametrize("length", range(30, 36))
@pytest.mark.parametrize("chunk", [4, 8])
def test_what_a_preempted_request_computed_itself_is_none_of_another(length: int, chunk: int) -> None:
    """And rows that were taken out of a batch again are not counted as sent."""
    scheduler = Scheduler(Limits(3, max_sequences=2, prefill_chunk=chunk), make_policy("none"))
    scheduler.start_epoch(1, 64)
    scheduler.submit(0, GenerationRequest(tuple(range(100, 120)), 40))
    in_flight: list[Batch] = []
    prefilled = 0
    second: GenerationRequest | None = GenerationRequest(tuple(range(200, 200 + length)), 5)
    for _ in range(200):
        if second and any(len(sequence.output) == 8 for sequence in scheduler.running.values()):
            scheduler.submit(1, second)
            second = None
        if (batch := scheduler.compose()) is not None:
            scheduler.on_started(batch.step)
            in_flight.append(batch)
            prefilled += batch.num_prefill
        if in_flight and (batch is None or len(in_flight) > 2):
            done = in_flight.pop(0)
            running = [row.request for row in done.rows if row.request in scheduler.running]
            scheduler.on_verdict(Verdict(1, done.step, tuple(Decision(request, (7,)) for request in running)))
    assert not scheduler.running
    assert scheduler.counts.preemptions > 0
    assert scheduler.counts.prefix_hits == 0
    assert scheduler.counts.prefix_queries == 19 + length - 1
    assert scheduler.counts.prefill_rows == prefilled


def test_a_full_pool_gives_up_what_was_not_wanted_for_longest() -> None:
    old, new = prompts(2, 33, seed=4)
    simulation = simulate("none", 2, 0.0, num_slots=80)
    loads = itertools.count()

    def reused(prompt: tuple[int, ...]) -> int:
        key, request = next(loads), GenerationRequest(prompt, 2)
        statistics = simulation.run({key: request})[key].statistics
        check(simulation, {key: request})
        assert statistics is not None
        return statistics.reused

    assert [reused(old), reused(new), reused(old)] == [0, 0, 32]
    assert reused(prompts(1, 33, seed=5)[0]) == 0
    assert reused(old) == 32
    assert reused(new) < 32


def test_without_a_cache_everything_is_computed_again() -> None:
    (prompt,) = prompts(1, 20, seed=6)
    load = {key: GenerationRequest(prompt, 4) for key in range(2)}
    simulation = simulate("adaptive", 3, 0.6, prefix_cache=False, max_sequences=1)
    simulation.run(load)
    check(simulation, load)
    assert simulation.scheduler.counts.prefix_hits == 0
    assert simulation.scheduler.counts.prefill_rows == 2 * 19


def test_a_new_formation_knows_nothing() -> None:
    (prompt,) = prompts(1, 20, seed=7)
    simulation = simulate("adaptive", 3, 0.6)
    simulation.run({0: GenerationRequest(prompt, 4)})
    simulation.form(256)
    simulation.run({1: GenerationRequest(prompt, 4)})
    check(simulation, {1: GenerationRequest(prompt, 4)})
    assert simulation.scheduler.counts.prefix_hits == 0
