"""The scheduler, the verifier and every policy on symbolic stages: outputs are exact whatever happens."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation import Simulation, Timing
from draft_service.generation import GenerationRequest
from draft_service.schedule.scheduler import Limits, Scheduler
from draft_service.schedule.sequence import MOST_GRAMMAR, MOST_GRAMMARS
from pipedec.policy import PolicyName, make_policy
from pipedec.sampling_params import MAX_GRAMMAR, SamplingParams
from pipedec.wire.codec import encode
from pipedec.wire.messages import Decision, Open, Prefill, Verdict
from tests.symbolic import VOCABULARY, SymbolicDraft, SymbolicStage, continuation

POLICIES: tuple[PolicyName, ...] = ("none", "static-tree", "pipedec", "adaptive")


def simulate(
    policy: PolicyName, stages: int, quality: float, num_slots: int = 256, timing: Timing | None = None, **limits: int
) -> Simulation:
    scheduler = Scheduler(Limits(stages, poison=True, **limits), make_policy(policy, width=6, children=3, depth=3))
    spans = [SymbolicStage(index == 0, index == stages - 1) for index in range(stages)]
    draft = SymbolicDraft(quality, children=3) if policy != "none" else None
    checks = scheduler.check_integrity if stages < 5 else None
    return Simulation(scheduler, spans, draft, num_slots, timing, after_event=checks)


def requests(count: int, seed: int, max_tokens: int = 16) -> dict[int, GenerationRequest]:
    """Some begin alike."""
    rng = random.Random(seed)
    common = [rng.randrange(VOCABULARY) for _ in range(20)]

    def prompt() -> tuple[int, ...]:
        own = [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 20))]
        alike = rng.choice((0, 0, rng.randrange(len(own))))
        return (*common[:alike], *own[alike:])

    return {key: GenerationRequest(prompt(), rng.randint(1, max_tokens)) for key in range(count)}


def check(simulation: Simulation, load: dict[int, GenerationRequest]) -> None:
    for key, request in load.items():
        generated = simulation.generated[key]
        assert generated.tokens == continuation(request.prompt, request.max_tokens)
        assert generated.statistics is not None
        assert generated.statistics.hits + generated.statistics.misses == request.max_tokens
    assert simulation.scheduler.num_slots_used == 0
    assert not simulation.scheduler.running
    assert not simulation.scheduler.waiting


@pytest.mark.parametrize("quality", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("stages", [1, 2, 3, 5, 14])
@pytest.mark.parametrize("policy", POLICIES)
def test_output_is_the_targets_own(policy: PolicyName, stages: int, quality: float) -> None:
    load = requests(3, seed=stages)
    simulation = simulate(policy, stages, quality)
    simulation.run(load)
    check(simulation, load)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    policy=st.sampled_from(POLICIES),
    stages=st.integers(1, 7),
    quality=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    num_slots=st.integers(48, 120),
    chunk=st.integers(1, 16),
    draft_ms=st.sampled_from([0.1, 5.0, 60.0]),
    seed=st.integers(0, 2**16),
)
def test_aborts_epochs_and_scarce_slots(
    policy: PolicyName, stages: int, quality: float, num_slots: int, chunk: int, draft_ms: float, seed: int
) -> None:
    """Small pools (requests are put back and resumed), aborts, lost formations, a draft that comes and goes, clients
    that read late."""
    rng = random.Random(seed)
    load = requests(5, seed)
    timing = Timing(draft=lambda rows: draft_ms / 1000)
    simulation = simulate(policy, stages, quality, num_slots, timing, prefill_chunk=chunk, max_sequences=4)
    scheduler, aborted = simulation.scheduler, set()
    simulation.run(load, until=lambda: rng.random() < 0.02)
    for _ in range(4):
        match rng.randrange(6):
            case 0:
                aborted.add(victim := rng.randrange(5))
                scheduler.abort(victim)
            case 1:
                simulation.form(num_slots)
            case 2:
                scheduler.lose_draft()
            case 3:
                if simulation.draft is not None and policy != "none":
                    simulation.draft.reset(num_slots)
                scheduler.restore_draft()
            case 4:
                scheduler.pause(rng.randrange(5))
            case 5:
                scheduler.resume(rng.randrange(5))
        scheduler.check_integrity()
        simulation.run({}, until=lambda: rng.random() < 0.02)
    for key in range(5):
        scheduler.resume(key)
    simulation.run({})
    for key in aborted:
        expected = continuation(load[key].prompt, load[key].max_tokens)
        tokens = simulation.generated[key].tokens
        assert tokens == expected[: len(tokens)]
        del load[key]
    check(simulation, load)


def test_end_tokens_end_a_sequence_with_batches_in_flight() -> None:
    prompt = (1, 2, 3)
    expected = continuation(prompt, 60)
    end = expected[17]
    expected = expected[: expected.index(end) + 1]
    simulation = simulate("adaptive", 5, 0.9)
    simulation.run({0: GenerationRequest(prompt, 60, end_tokens=frozenset({end}))})
    assert simulation.generated[0].tokens == expected
    assert simulation.scheduler.num_slots_used == 0


def test_a_perfect_draft_gives_one_token_per_step() -> None:
    """After the pipeline is filled once, the paper's policy decides a token at every step."""
    stages, tokens = 8, 40
    simulation = simulate("pipedec", stages, quality=1.0, timing=Timing(link=0.0, draft=lambda rows: 0.0))
    times = simulation.run({0: GenerationRequest((1, 2, 3), tokens)})[0].times
    assert times[0] == pytest.approx(stages * 0.020)
    assert times[-1] - times[0] == pytest.approx((tokens - 1) * 0.020)


def test_a_useless_draft_is_never_slower_than_plain_pipeline_parallelism() -> None:
    prompt, tokens, times = (5, 6), 20, {}
    for policy in ("none", "pipedec", "adaptive"):
        simulation = simulate(policy, 6, quality=0.0)
        times[policy] = simulation.run({0: GenerationRequest(prompt, tokens)})[0].times[-1]
    assert times["pipedec"] <= times["none"] * 1.001
    assert times["adaptive"] <= times["none"] * 1.001


def test_a_cursor_gets_its_slot_though_the_youngest_has_none_to_give() -> None:
    """A draft that hangs holds three requests at their trees: one of a single token, which has no slot at all."""
    scheduler = Scheduler(Limits(1, max_sequences=4), make_policy("static-tree", width=4, children=3, depth=2))
    scheduler.start_epoch(1, 24)

    def step() -> int:
        batch = scheduler.compose()
        assert batch is not None
        scheduler.on_started(batch.step)
        decided = {row.request: Decision(row.request, (7,)) for row in batch.rows}
        return len(scheduler.on_verdict(Verdict(1, batch.step, tuple(decided.values()))))

    scheduler.submit(0, GenerationRequest(tuple(range(1, 10)), 15))
    first = scheduler.waiting.next()
    assert first is not None
    first.suspicion.forswear()  # it is not predictable, and takes a slot with every token
    step()
    scheduler.submit(1, GenerationRequest((3, 4, 5), 4))
    step()
    assert scheduler.compose_draft() is not None
    scheduler.submit(2, GenerationRequest((5,), 4))
    assert sum(step() for _ in range(13)) == 13
    assert 0 not in {sequence.key for sequence in scheduler.running.values()}


def test_who_is_paused_holds_nothing_and_goes_on_exactly() -> None:
    load = {key: replace(each, max_tokens=30) for key, each in requests(3, seed=8).items()}
    simulation = simulate("adaptive", 4, 0.7)
    scheduler = simulation.scheduler
    simulation.run(load, until=lambda: all(len(each.tokens) > 3 for each in simulation.generated.values()))
    for key in (0, 1):
        scheduler.pause(key)
    before = {key: len(simulation.generated[key].tokens) for key in (0, 1)}
    simulation.run({})
    assert scheduler.num_slots_used == 0
    assert {key: len(simulation.generated[key].tokens) for key in (0, 1)} == before
    scheduler.abort(1)
    for key in load:
        scheduler.resume(key)
    simulation.run({})
    del load[1]
    check(simulation, load)


@pytest.mark.parametrize("policy", POLICIES)
def test_predictions_do_not_hold_a_request_out_that_fits_beside_what_is_certain(policy: PolicyName) -> None:
    first, second = GenerationRequest((1, 2, 3), 300), GenerationRequest(tuple(range(20)) * 5, 20)
    simulation = simulate(policy, 6, 1.0, num_slots=430, max_sequences=2)
    generated = simulation.run({0: first}, until=lambda: len(simulation.generated[0].tokens) > 20)
    simulation.run({1: second}, until=lambda: bool(simulation.generated[1].tokens))
    assert len(generated[0].tokens) < 100
    simulation.run({})
    check(simulation, {0: first, 1: second})


@pytest.mark.parametrize("tokens", [(7, 7), (3, 4, 7, 7)])
def test_tokens_that_no_row_can_have_decided_are_not_taken(tokens: tuple[int, ...]) -> None:
    """A stage that is out of its mind must neither write an answer nor end the head: the request starts anew."""
    scheduler = Scheduler(Limits(2), make_policy("none"))
    scheduler.start_epoch(1, 32)
    scheduler.submit(0, GenerationRequest((1, 2, 3), 4))

    def decide(tokens: tuple[int, ...]) -> list[int]:
        batch = scheduler.compose()
        assert batch is not None
        scheduler.on_started(batch.step)
        (row,) = batch.rows
        decided = scheduler.on_verdict(Verdict(1, batch.step, (Decision(row.request, tokens),)))
        scheduler.check_integrity()
        return [event.token for _, event in decided]

    assert decide(tokens) == [tokens[0]]  # the cursor's own word; what follows was never sent
    assert [decide((token,)) for token in (5, 6, 8)] == [[5], [6], [8]]
    assert not scheduler.running
    assert scheduler.num_slots_used == 0


@pytest.mark.parametrize("prompt", [(1,), (1, 2, 3)])
def test_grammars_wait_for_room_in_a_batch(prompt: tuple[int, ...]) -> None:
    """Ten of the longest are more than a header takes: some open with later batches, and have no rows before."""
    scheduler = Scheduler(Limits(4, prefill_chunk=64), make_policy("none"))
    scheduler.start_epoch(1, 64)
    sampling = SamplingParams(grammar="\N{GRINNING FACE}" * (MAX_GRAMMAR // 4))
    for key in range(10):
        scheduler.submit(key, GenerationRequest(prompt, 4, sampling))
    scheduler.submit(10, GenerationRequest((1, 2), 4))
    opened: list[int] = []
    batches = 0
    while (batch := scheduler.compose()) is not None:
        assert len(encode(batch)) < 2 * MOST_GRAMMAR
        opened += [op.request for op in batch.ops if isinstance(op, Open)]
        assert {row.request for row in batch.rows} <= set(opened)
        scheduler.on_started(batch.step)
        batches += 1
    assert sorted(opened) == list(range(11))
    assert batches > 2


def test_only_so_many_grammars_open_at_once() -> None:
    """However short: the last stage compiles them one after the other."""
    scheduler = Scheduler(Limits(4, max_sequences=32), make_policy("none"))
    scheduler.start_epoch(1, 256)
    for key in range(20):
        scheduler.submit(key, GenerationRequest((1,), 4, SamplingParams(grammar="x")))
    counts = []
    while (batch := scheduler.compose()) is not None:
        counts.append(len(batch.rows))
        scheduler.on_started(batch.step)
    assert counts == [MOST_GRAMMARS, MOST_GRAMMARS, 20 - 2 * MOST_GRAMMARS]


def test_requests_that_left_before_anything_was_sent_leave_nothing_behind() -> None:
    """Their grammars would take the room of all that follow; and a batch has room for so many ops."""
    scheduler = Scheduler(Limits(4), make_policy("static-tree", width=4, children=3, depth=2))
    scheduler.start_epoch(1, 256)
    sampling = SamplingParams(grammar="x")
    for key in range(2 * MOST_GRAMMARS):
        scheduler.submit(key, GenerationRequest((1,), 4, sampling))
    assert scheduler.compose() is None  # their cursors wait for trees
    for key in range(2 * MOST_GRAMMARS):
        scheduler.abort(key)
    scheduler.submit(99, GenerationRequest((1, 2, 3), 4, sampling))
    batch = scheduler.compose()
    assert batch is not None
    assert [type(op) for op in batch.ops] == [Open, Prefill]


def test_grammars_of_cursors_that_are_held_do_not_pile_up() -> None:
    """Nothing is sent while the first of these waits for its tree, however often it is asked."""
    scheduler = Scheduler(Limits(4, prefill_chunk=64), make_policy("static-tree", width=4, children=3, depth=2))
    scheduler.start_epoch(1, 64)
    sampling = SamplingParams(grammar="x" * MAX_GRAMMAR)
    for key in range(10):
        scheduler.submit(key, GenerationRequest((1,), 4, sampling))
    for _ in range(20):
        assert scheduler.compose() is None
    assert scheduler.compose_draft() is not None
    scheduler.lose_draft()
    batch = scheduler.compose()
    assert batch is not None
    assert len(encode(batch)) < 2 * MOST_GRAMMAR
