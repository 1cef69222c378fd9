"""The measured cost of a batch."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedec.cost import COLD_STEPS, FORGOTTEN, StepCost, StepTimes, flat_cost

TIMES = st.lists(st.tuples(st.integers(1, 512), st.floats(1e-4, 10.0)), max_size=8, unique_by=lambda time: time[0])


def test_nothing_measured_is_the_prior() -> None:
    cost = StepCost()
    assert [cost(rows) for rows in (1, 64, 128)] == [flat_cost(rows) for rows in (1, 64, 128)]


def test_the_slowest_stage_counts_and_the_rest_is_interpolated() -> None:
    cost = StepCost()
    cost.observe(0, [(1, 0.010), (8, 0.020), (32, 0.080)])
    cost.observe(1, [(1, 0.012), (8, 0.018)])
    assert cost(1) == 0.012
    assert cost(8) == 0.020
    assert cost(20) == pytest.approx(0.050)
    assert cost(64) == pytest.approx(0.080)  # the prior is flat up to 64 rows
    assert cost(128) == pytest.approx(0.160)


def test_what_a_stage_says_replaces_what_it_said() -> None:
    cost = StepCost()
    cost.observe(0, [(1, 9.0)])
    cost.observe(0, [(1, 0.5)])
    assert cost(1) == 0.5


def test_times_are_means_by_powers_of_two_without_the_first_ones() -> None:
    times = StepTimes()
    for seconds in (9.0,) * COLD_STEPS + (1.0, 2.0):
        times.add(5, seconds)
    times.add(0, 5.0)
    assert times.snapshot() == ((8, pytest.approx(1.2)),)


def test_a_size_that_was_slow_once_is_tried_again_some_day() -> None:
    times = StepTimes()
    for rows in (*(64,) * COLD_STEPS, 64, *(1,) * (FORGOTTEN - 1)):
        times.add(rows, float(rows))
    assert times.snapshot() == ((1, 1.0), (64, 64.0))
    times.add(1, 1.0)
    assert times.snapshot() == ((1, 1.0),)
    times.add(64, 2.0)
    assert times.snapshot() == ((1, 1.0), (64, 2.0)), "it is warm already"


@given(
    st.lists(st.tuples(st.integers(0, 3), TIMES), max_size=6), st.lists(st.integers(1, 1024), min_size=2, max_size=9)
)
def test_more_rows_never_cost_less(reports: list[tuple[int, list[tuple[int, float]]]], rows: list[int]) -> None:
    cost = StepCost()
    for stage, times in reports:
        cost.observe(stage, times)
    costs = [cost(count) for count in sorted(rows)]
    assert all(less <= more * (1 + 1e-9) for less, more in pairwise(costs))
    assert costs[0] > 0


def test_times_that_cannot_be_are_left_out() -> None:
    cost = StepCost()
    cost.observe(0, ((1, 0.0), (2, -1.0), (0, 1.0)))
    assert cost(3) == flat_cost(3)
    cost.observe(0, ((1, 0.0), (2, 0.01)))
    assert cost(1) == cost(2) == 0.01
