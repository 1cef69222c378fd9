"""What the head's loop leaves is bounded, and faults are told as outages; how fast it goes is told of enough time."""

from __future__ import annotations

from draft_service.live.speed import Speed, plain_tokens_per_second
from draft_service.live.tap import MAX_EVENTS, MAX_FAULTS, Fault, Tap
from pipedec.wire.messages import Verdict


def test_what_nobody_drains_is_bounded_and_the_gap_is_known() -> None:
    tap = Tap(1)
    tap.open(0.0, ())
    for step in range(3 * MAX_EVENTS):
        tap.add(1.0, Verdict(1, step))
    assert tap.drain() is None
    assert tap.drain() == []
    tap.add(2.0, Verdict(1, 7))
    assert tap.drain() == [(2.0, Verdict(1, 7))]


def test_an_outage_is_one_fault_whatever_is_found_out_meanwhile() -> None:
    tap = Tap(2)
    tap.live(0.0)
    tap.lost(1.0, 5, "stage 0 has left epoch 5")
    tap.lost(1.5, 6, "stage 1 cannot be reached")
    assert tap.faults == (Fault(6, "stage 1 cannot be reached", 1.0),)
    tap.live(4.0)
    tap.lost(9.0, 7, "again")
    assert tap.faults == (Fault(6, "stage 1 cannot be reached", 1.0, 4.0), Fault(7, "again", 9.0))
    for epoch in range(100):
        tap.live(10.0)
        tap.lost(10.0, epoch, "again")
    assert len(tap.faults) == MAX_FAULTS
    assert tap.drain() == []  # faults alone are kept where nobody watches


def test_a_rate_is_of_enough_time_and_outlives_a_pause() -> None:
    speed = Speed()
    for turn in range(60):
        speed.decided(turn % 4 > 0)
        speed.came(turn / 10, 1)
        if turn < 20:
            assert speed.tokens_per_second is None
    assert speed.tokens_per_second is not None
    assert abs(speed.tokens_per_second - 10) < 1e-9
    assert speed.hit_rate == 0.75
    speed.pause()
    speed.came(100.0, 30)
    speed.came(100.1, 30)
    assert abs(speed.tokens_per_second - 10) < 1e-9


def test_without_predictions_requests_share_the_stages_until_the_slowest_is_full() -> None:
    assert plain_tokens_per_second(1, 0.4, 0.1) == 2.5
    assert plain_tokens_per_second(3, 0.4, 0.1) == 7.5
    assert plain_tokens_per_second(9, 0.4, 0.1) == 10.0
