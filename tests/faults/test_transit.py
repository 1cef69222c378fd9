"""How long is too long."""

from __future__ import annotations

import pytest

from draft_service.transit import FACTOR, Patience, Transit
from pipedec.errors import ProtocolError
from pipedec.metrics.distribution import Distribution


def test_patience_is_learnt_by_rows() -> None:
    patience = Patience(floor=1.0, first=60.0)
    assert patience.limit(5) == 60.0
    patience.learn(8, 0.5)
    assert patience.limit(5) == patience.limit(8) == FACTOR * 0.5
    assert patience.limit(3) == FACTOR * 0.5, "fewer rows never need longer"
    assert patience.limit(32) == FACTOR * 2.0, "more rows need at most in proportion"
    patience.learn(1, 0.01)
    assert patience.limit(1) == 1.0


def test_a_single_slow_answer_at_most_doubles_the_limit() -> None:
    patience = Patience(floor=3.0, first=60.0)
    patience.learn(4, 0.01)
    patience.learn(4, 30.0)
    assert patience.limit(4) == pytest.approx(6.0)


def test_the_slowest_fades_while_others_are_faster() -> None:
    patience = Patience(floor=0.0, first=60.0)
    patience.learn(1, 1.0)
    for _ in range(50):
        patience.learn(1, 0.1)
    assert FACTOR * 0.1 <= patience.limit(1) < FACTOR * 0.11


def test_patience_that_ran_out_is_twice_as_long_the_next_time() -> None:
    patience = Patience(floor=10.0, first=60.0)
    patience.learn(1, 0.1)
    for expected in (20.0, 40.0, 80.0):
        patience.run_out(1)
        assert patience.limit(1) == pytest.approx(expected)


def test_answers_come_in_order_or_not_at_all() -> None:
    transit = Transit(Patience(floor=1.0, first=1.0), Distribution((1.0,)))
    assert transit.overdue(100.0) == 0.0
    assert not transit.answered(0, 0.0)
    for step in range(4):
        transit.sent(step, 1, 0.0)
    assert transit.answered(0, 0.5)
    assert not transit.answered(0, 0.5)
    assert transit.oldest == 1
    with pytest.raises(ProtocolError, match="step 2 was answered, but step 1 was not"):
        transit.answered(2, 0.6)


def test_the_clock_runs_from_the_latest_answer_and_is_asked_once() -> None:
    transit = Transit(Patience(floor=1.0, first=1.0), Distribution((1.0,)))
    transit.sent(0, 1, 0.0)
    transit.sent(1, 1, 0.0)
    assert transit.overdue(1.0) == 0.0
    assert transit.answered(0, 0.1)
    assert transit.overdue(1.05) == 0.0
    assert transit.overdue(1.2) == pytest.approx(1.1)
    assert transit.overdue(1.3) == 0.0
    transit.clear()
    assert transit.overdue(99.0) == 0.0
