"""The picture knows what the scheduler knows, from messages alone, from the first token or from the middle."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulation import Span, Timing
from draft_service.generation import GenerationRequest
from draft_service.live.tap import Fault, Opening
from draft_service.live.trees import Fate
from pipedec.policy import PolicyName
from tests.live.watching import Watch
from tests.symbolic import VOCABULARY

POLICIES: tuple[PolicyName, ...] = ("none", "static-tree", "pipedec", "adaptive")


def requests(count: int, seed: int, max_tokens: int = 24) -> dict[int, GenerationRequest]:
    rng = random.Random(seed)
    return {
        key: GenerationRequest(tuple(rng.randrange(VOCABULARY) for _ in range(rng.randint(1, 9))), max_tokens)
        for key in range(count)
    }


def check_trees(watch: Watch) -> None:
    """Every sequence that has been sent anything has the same cursor and the same nodes in flight in the picture."""
    for id, sequence in watch.scheduler.running.items():
        tree = watch.picture.trees.get(id)
        if tree is None:
            assert not sequence.target.opened
            continue
        root = sequence.tree.root
        assert (tree.cursor.id if tree.cursor else None) == (root.id if root.sent else None)
        sent = {node.id for node in root.subtree() if node.sent and node is not root}
        assert {node.id for node in tree.in_flight()} == sent
        assert tree.num_output == len(sequence.output)
        said = [each.token for each in tree.path]
        assert said == sequence.tokens[len(sequence.tokens) - len(said) :]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    policy=st.sampled_from(POLICIES),
    stages=st.integers(1, 6),
    quality=st.sampled_from([0.0, 0.5, 0.9, 1.0]),
    seed=st.integers(0, 2**16),
    late=st.booleans(),
)
def test_it_agrees_with_the_scheduler(policy: PolicyName, stages: int, quality: float, seed: int, late: bool) -> None:
    rng = random.Random(seed)
    watch = Watch(policy, stages, quality)
    load = requests(2, seed, max_tokens=12)
    if late:
        watch.simulation.run(load, until=lambda: rng.random() < 0.05)
        load = {}
    watch.begin()
    while watch.simulation.run(load, until=lambda: rng.random() < 0.2) and watch.scheduler.running:
        load = {}
        watch.look()
        check_trees(watch)
    watch.simulation.run({})  # the last batches come back
    assert not watch.picture.trees
    assert not watch.picture.in_flight


@pytest.mark.parametrize("policy", POLICIES)
def test_rows_are_useful_or_wasted_by_the_time_their_batch_is_back(policy: PolicyName) -> None:
    watch = Watch(policy, 4, 0.7)
    watch.begin()
    watch.simulation.run(requests(3, seed=1))
    counts = watch.scheduler.counts
    assert sum(step.count(Fate.OPEN) for step in watch.steps) == 0
    assert sum(step.count(Fate.USEFUL) for step in watch.steps) == counts.hits + counts.certain_rows
    assert sum(len(step.nodes) for step in watch.steps) == counts.certain_rows + counts.predicted_rows
    assert sum(step.prompt for step in watch.steps) == counts.prefill_rows
    assert sum(step.decided for step in watch.steps) == counts.hits + counts.misses == 72
    assert watch.picture.speed.hit_rate == counts.hits / 72


def test_a_lost_epoch_ends_what_was_in_flight() -> None:
    watch = Watch("adaptive", 3, 0.9)
    watch.begin()
    watch.simulation.run(requests(1, seed=2), until=lambda: watch.simulation.now > 0.3)
    watch.look()
    assert watch.picture.in_flight
    in_flight, before = len(watch.picture.in_flight), len(watch.steps)
    watch.picture.apply([(watch.simulation.now, Fault(1, "stage 1 cannot be reached", watch.simulation.now))])
    lost = watch.picture.take_finished()
    assert len(lost) == in_flight
    assert all(step.lost for step in lost)
    assert not any(step.lost for step in watch.steps[:before])

    watch.simulation.form(512)  # as the next epoch begins: requests start again from what they have emitted
    watch.simulation.run({}, until=lambda: watch.simulation.now > 0.5)
    watch.look()
    check_trees(watch)


def test_estimated_times_are_the_real_ones_where_nothing_disturbs_them() -> None:
    """Without predictions nothing is cancelled, and requests follow each other through stages that keep their word."""
    watch = Watch("none", 3, 0.0, Timing(link=0.0))
    watch.picture.observe([((8, 0.02),)] * 3)
    watch.begin()
    watch.simulation.run(requests(3, seed=3))
    spans: dict[tuple[int, int], Span] = {(span.stage, span.step): span for span in watch.simulation.spans}
    for step in watch.steps:
        for stage in range(3):
            real = spans[stage, step.number]
            estimated = (step.passage.begins[stage], step.passage.ends[stage])
            assert estimated == pytest.approx((real.start, real.end))


def test_stages_are_busy_for_the_share_of_time_that_they_compute() -> None:
    alone = Watch("none", 4, 0.0, Timing(link=0.0))
    alone.picture.observe([((8, 0.02),)] * 4)
    alone.begin()
    alone.simulation.run(requests(1, seed=3, max_tokens=100), until=lambda: alone.simulation.now > 4)
    assert alone.picture.busy(alone.simulation.now) == pytest.approx([0.25] * 4, abs=0.02)
    assert alone.picture.passages.round_trip() == pytest.approx((0.08, 0.02))


def test_a_watch_begins_with_an_opening_and_ends_with_it() -> None:
    watch = Watch("pipedec", 2, 1.0)
    watch.simulation.run(requests(1, seed=4), until=lambda: watch.simulation.now > 0.2)
    assert watch.scheduler.tap.drain() == []
    watch.begin()
    ((_, opening),) = watch.scheduler.tap.drain() or ()
    assert isinstance(opening, Opening)
    watch.simulation.run({}, until=lambda: watch.simulation.now > 0.3)
    watch.scheduler.tap.close()
    assert watch.scheduler.tap.drain() == []
