"""Which batches the pipeline holds, and what of them is not worth computing."""

from __future__ import annotations

from draft_service.schedule.in_flight import InFlight
from pipedec.wire.messages import Cancel

EPOCH = 5


def test_credits_are_one_more_than_there_are_stages_and_come_back_with_verdicts() -> None:
    in_flight = InFlight(stages=2)
    for number in range(3):
        assert in_flight.has_credit
        assert len(in_flight) == in_flight.step == number
        in_flight.sent([7])
    assert not in_flight.has_credit
    in_flight.answered()
    assert in_flight.has_credit
    assert in_flight.step == 3


def test_the_next_batch_is_awaited_once_stage_0_has_begun_with_the_last() -> None:
    in_flight = InFlight(stages=3)
    assert in_flight.is_awaited
    in_flight.sent([7])
    in_flight.sent([7])
    in_flight.started(0)
    assert not in_flight.is_awaited
    in_flight.started(1)
    in_flight.started(0)  # late
    assert in_flight.is_awaited


def test_a_loss_meets_those_whose_batches_have_no_verdict() -> None:
    in_flight = InFlight(stages=3)
    for requests in ([1, 2], [2], [2, 3]):
        in_flight.sent(requests)
    in_flight.answered()
    assert in_flight.lose() == {2, 3}
    assert in_flight.lose() == frozenset()


def test_what_died_is_told_once_and_only_where_it_can_still_be_met() -> None:
    in_flight = InFlight(stages=1)
    in_flight.bury([(1, 2)])
    assert in_flight.take_cancel(EPOCH) is None
    in_flight.sent([1])
    assert in_flight.take_cancel(EPOCH) is None
    in_flight.bury([(1, 3)])
    in_flight.bury([(1, 4)])
    assert in_flight.take_cancel(EPOCH) == Cancel(EPOCH, 0, ((1, 3), (1, 4)))
    assert in_flight.take_cancel(EPOCH) is None
