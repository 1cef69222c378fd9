"""Plain numbers that hot loops add to, and what a stage makes of its time and rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from pipedec.metrics.declared import stage as declared
from pipedec.metrics.distribution import Distribution
from pipedec.metrics.family import Catalogue
from pipedec.metrics.head import HeadCounts
from pipedec.metrics.stage import StageMetrics
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import Batch, Commit, Open, Prefill, Row, Rows
from stage_service.accounts import TimeByState, UsefulRows

BOUNDS = (1.0, 2.0, 4.0, 8.0)


@given(st.lists(st.floats(0, 20)))
def test_a_distribution_counts_as_prometheus_does(values: list[float]) -> None:
    registry = CollectorRegistry()
    family = Catalogue().histogram("sizes", "rows", "Sizes.", "sizes", BOUNDS)
    theirs, ours = family.histogram(registry), Distribution(BOUNDS)
    for value in values:
        theirs.observe(value)
        ours.add(value)
    for bound, count in ours.cumulative():
        assert registry.get_sample_value("sizes_bucket", {"le": bound}) == count
    assert registry.get_sample_value("sizes_sum") == ours.total


def test_hits_are_told_by_how_far_ahead_they_were_sent() -> None:
    counts = HeadCounts()
    for ahead in (1, 1, 3, 16, 17, 400):
        counts.hit(ahead)
    assert counts.hits == 6
    assert (counts.accepted[0], counts.accepted[2], counts.accepted[-1], sum(counts.accepted)) == (2, 1, 3, 6)


def test_time_belongs_to_one_state_at_a_time() -> None:
    registry = CollectorRegistry()
    now = 100.0
    time = TimeByState(StageMetrics(registry, 3).seconds, lambda: now)

    def spent() -> list[float | None]:
        labels = ({"stage": "3", "state": state} for state in declared.STATES)
        return [registry.get_sample_value("pipedec_stage_seconds_total", each) for each in labels]

    now = 101.0
    assert time.enter("idle") == 1.0
    now = 103.0
    time.enter("busy")
    now = 105.0
    time.flush()
    assert spent() == [2.0, 2.0, 0.0, 1.0]
    now = 107.0
    assert time.enter("blocked") == 4.0  # since it began, flushed or not
    assert spent() == [4.0, 2.0, 0.0, 1.0]


def row(slot: int) -> Row:
    return Row(request=1, node=slot, parent=slot - 1, token=5, position=slot, slot=slot, ancestors=())


def test_rows_are_useful_once_they_are_committed() -> None:
    useful = UsefulRows()
    prompt = Batch(7, 0, (Open(1, SamplingParams(), 3), Prefill(1, 0, (4, 5), (0, 1))), Rows.of([row(2), row(3)]))
    assert useful.add(prompt, rows=4, seconds=8.0) == (2, 4.0)  # the two of the prompt, at once
    assert useful.add(Batch(7, 1, (Commit(1, (2,)),), Rows.of([row(4), row(5)])), rows=1, seconds=3.0) == (1, 2.0)
    assert useful.add(Batch(7, 2, (Commit(1, (3, 4)),)), rows=0, seconds=0.0) == (2, 2.0 + 3.0)


def test_a_slot_that_is_used_again_is_of_its_newest_row() -> None:
    useful = UsefulRows()
    useful.add(Batch(7, 0, (), Rows.of([row(2)])), rows=1, seconds=50.0)  # wasted
    useful.add(Batch(7, 1, (), Rows.of([row(2)])), rows=1, seconds=1.0)
    assert useful.add(Batch(7, 2, (Commit(1, (2,)),)), rows=0, seconds=0.0) == (1, 1.0)


def test_steps_are_told_by_rows() -> None:
    registry = CollectorRegistry()
    metrics = StageMetrics(registry, 0)
    for rows in (0, 1, 2, 3, 4, 5, 64, 65, 1000):
        metrics.step(rows, 0.1)

    def count(rows: str) -> float | None:
        return registry.get_sample_value("pipedec_stage_step_seconds_count", {"stage": "0", "rows": rows})

    assert [count(rows) for rows in declared.ROWS] == [1, 1, 1, 2, 1, 0, 0, 1, 2]
