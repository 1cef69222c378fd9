"""Who may be a member, and why not; what is told to whom."""

from __future__ import annotations

from dataclasses import replace

import pytest

from draft_service.formation import (
    SILENCE_SECONDS,
    Action,
    EpochBegun,
    EpochLive,
    EpochLost,
    Members,
    Send,
)
from pipedec.wire.messages import BEAT_SECONDS, NO_EPOCH, Formation, Heartbeat, Joined, Refused, Register, Started

FIRST = 1000


def offer(stage: int, stages: int = 3, incarnation: str = "a", **changes: object) -> Register:
    good = Register(
        stage=stage,
        stages=stages,
        layers=(4 * stage, 4 * stage + 4),
        revision="r1",
        address=f"tcp://stage-{stage}{incarnation}:1",
        slots=100 + stage,
        incarnation=f"{stage}{incarnation}",
        width=32,
        dtype="float32",
    )
    return replace(good, **changes)  # type: ignore[arg-type]


def members(stages: int = 3) -> Members:
    return Members(stages, "r1", "tcp://head:9", FIRST)


def peer(register: Register) -> bytes:
    return register.incarnation.encode()


def enlist(crowd: Members, *offers: Register, now: float = 0.0) -> list[Action]:
    return [action for register in offers for action in crowd.receive(peer(register), register, now)]


def live(stages: int = 3) -> tuple[Members, list[Register]]:
    crowd, offers = members(stages), [offer(stage, stages) for stage in range(stages)]
    enlist(crowd, *offers)
    for register in offers:
        crowd.receive(peer(register), Joined(crowd.epoch, register.stage), 0.0)
    assert crowd.live
    return crowd, offers


def formations(actions: list[Action]) -> dict[bytes, Formation]:
    return {
        action.peer: action.message
        for action in actions
        if isinstance(action, Send) and isinstance(action.message, Formation)
    }


def refusal(actions: list[Action]) -> str:
    (action,) = actions
    assert isinstance(action, Send)
    assert isinstance(action.message, Refused)
    return action.message.reason


def test_an_epoch_begins_with_the_last_stage_and_lives_with_the_last_joined() -> None:
    crowd = members()
    assert crowd.waiting_for(0.0) == "waiting for stage 0, 1, 2 to register"
    assert not formations(enlist(crowd, offer(2), offer(0)))
    assert crowd.waiting_for(0.0) == "waiting for stage 1 to register"
    begun = enlist(crowd, offer(1))
    assert EpochBegun(FIRST, 100, "tcp://stage-0a:1") in begun
    assert formations(begun) == {
        b"0a": Formation(FIRST, "tcp://stage-1a:1", 100),
        b"1a": Formation(FIRST, "tcp://stage-2a:1", 100),
        b"2a": Formation(FIRST, "tcp://head:9", 100),
    }
    assert crowd.receive(b"0a", Joined(FIRST, 0), 0.0) == []
    assert crowd.receive(b"2a", Joined(FIRST, 2), 0.0) == []
    assert crowd.waiting_for(0.0) == f"epoch {FIRST}: waiting for stage 1 to join"
    assert crowd.receive(b"1a", Joined(FIRST, 1), 0.0) == [EpochLive(FIRST, 100)]
    assert crowd.live
    assert crowd.waiting_for(0.0) == ""
    assert crowd.peers == (b"2a", b"0a", b"1a")


def test_every_registration_is_answered_with_the_newest_epoch() -> None:
    assert enlist(members(), offer(1)) == [Send(b"1a", Heartbeat(FIRST - 1, 1, 0))]


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (offer(1, revision="r2"), "revision r2, but the pipeline has r1"),
        (offer(1, stages=4), "stage 1 of 4, but the pipeline has stages 0 to 2"),
        (offer(3), "stage 3 of 3, but the pipeline has stages 0 to 2"),
        (offer(1, slots=97), "stage 1 offers 97 KV slots, but one request may need 98"),
        (offer(0, layers=(1, 4)), "stage 0 begins with layer 1, not 0"),
        (offer(2, layers=(8, 11)), "stage 2 ends before layer 11, but the model has 12"),
        (offer(0, layers=(0, 3)), "layers 0-3 of stage 0 and 4-8 of stage 1 do not meet"),
        (offer(2, layers=(7, 12)), "layers 7-12 of stage 2 and 4-8 of stage 1 overlap"),
        (offer(0, width=64), "stage 0 has width 64 in float32, but stage 1 has 32 in float32"),
        (offer(2, dtype="bfloat16"), "stage 2 has width 32 in bfloat16, but stage 1 has 32 in float32"),
    ],
)
def test_a_stage_that_does_not_fit_is_refused_with_the_reason(wrong: Register, reason: str) -> None:
    crowd = Members(3, "r1", "tcp://head:9", FIRST, num_layers=12, least_slots=98)
    if wrong.stage != 1:
        enlist(crowd, offer(1))
    assert refusal(enlist(crowd, wrong)).startswith(reason)
    assert f"stage {wrong.stage} was refused: {reason}" in crowd.waiting_for(0.0) or wrong.stage > 2
    enlist(crowd, *(offer(stage) for stage in range(3)))
    assert crowd.epoch == FIRST


def test_an_epoch_has_no_more_slots_than_the_draft_model() -> None:
    """Stages that were started with another manifest may hold more: it would fail with the first of these."""
    crowd = Members(3, "r1", "tcp://head:9", FIRST, most_slots=60)
    begun = enlist(crowd, *(offer(stage) for stage in range(3)))
    assert EpochBegun(FIRST, 60, "tcp://stage-0a:1") in begun
    assert {formation.slots for formation in formations(begun).values()} == {60}


def test_a_stage_that_comes_back_too_small_for_one_request_is_refused() -> None:
    """That request would wait for ever, and all that came after it."""
    crowd = Members(3, "r1", "tcp://head:9", FIRST, least_slots=98)
    enlist(crowd, *(offer(stage) for stage in range(3)))
    assert refusal(enlist(crowd, offer(1, incarnation="b", slots=50))).startswith("stage 1 offers 50 KV slots")


def test_registering_twice_changes_nothing() -> None:
    crowd, offers = live()
    for register in offers:
        assert enlist(crowd, register) == [Send(peer(register), Heartbeat(FIRST, register.stage, 0))]
    assert crowd.live


def test_a_restarted_stage_begins_a_new_epoch_at_once() -> None:
    crowd, _ = live()
    actions = enlist(crowd, offer(1, incarnation="b"))
    assert actions[0] == EpochLost(FIRST, "stage 1 was started again")
    assert formations(actions)[b"0a"] == Formation(FIRST + 1, "tcp://stage-1b:1", 100)
    assert set(formations(actions)) == {b"0a", b"1b", b"2a"}


def test_the_process_that_was_replaced_is_turned_away_while_its_successor_lives() -> None:
    crowd, _ = live()
    enlist(crowd, offer(1, incarnation="b"))
    assert refusal(enlist(crowd, offer(1))) == "stage 1 is taken by a process that was started later"
    crowd.unreachable(b"1b", 0.0)
    assert formations(enlist(crowd, offer(1)))[b"1a"].epoch == FIRST + 2


def test_silence_ends_the_epoch_and_the_others_wait() -> None:
    crowd, offers = live()
    now = SILENCE_SECONDS
    for register in (offers[0], offers[2]):
        assert crowd.receive(peer(register), Started(FIRST, register.stage, 5), now) == []
    crowd.tick(now)
    assert crowd.live
    actions = crowd.tick(now + 1)
    assert EpochLost(FIRST, f"stage 1 has been silent for {now + 1:.0f} s") in actions
    assert crowd.waiting_for(now + 1) == "waiting for stage 1 to register"
    assert set(formations(crowd.receive(b"1a", Heartbeat(FIRST, 1, 5), now + 2))) == {b"0a", b"1a", b"2a"}


def test_a_peer_that_cannot_be_reached_is_missing_until_it_is_heard() -> None:
    crowd, offers = live()
    assert crowd.unreachable(b"2a", 0.0) == [EpochLost(FIRST, "stage 2 cannot be reached")]
    assert crowd.unreachable(b"stranger", 0.0) == []
    assert crowd.tick(0.5) == [Send(peer(register), Heartbeat(FIRST, register.stage, 0)) for register in offers]
    assert formations(crowd.receive(b"2a", Heartbeat(FIRST, 2, 0), 1.0))[b"2a"].epoch == FIRST + 1


def test_a_stage_that_left_its_epoch_begins_another() -> None:
    crowd, _ = live()
    actions = crowd.receive(b"1a", Heartbeat(NO_EPOCH, 1, 4), 1.0)
    assert actions[0] == EpochLost(FIRST, f"stage 1 has left epoch {FIRST}")
    assert formations(actions)[b"1a"].epoch == FIRST + 1
    assert crowd.receive(b"1a", Heartbeat(NO_EPOCH, 1, 4), 1.0) == []  # it has not joined the new one yet


def test_the_head_may_give_an_epoch_up() -> None:
    crowd, _ = live()
    actions = crowd.abandon("no verdict came", 1.0)
    assert actions[:2] == [EpochLost(FIRST, "no verdict came"), EpochBegun(FIRST + 1, 100, "tcp://stage-0a:1")]


def test_messages_of_older_epochs_change_nothing() -> None:
    crowd, offers = live()
    crowd.abandon("x", 0.0)
    for register in offers:
        for late in (Joined(FIRST, register.stage), Heartbeat(FIRST, register.stage, 9), Started(FIRST, 0, 9)):
            assert crowd.receive(peer(register), late, 0.0) == []
    assert crowd.epoch == FIRST + 1
    assert crowd.waiting_for(0.0) == f"epoch {FIRST + 1}: waiting for stage 0, 1, 2 to join"


def test_strangers_are_told_the_epoch_so_that_they_register() -> None:
    crowd, _ = live()
    assert crowd.receive(b"?", Heartbeat(7, 2, 0), 0.0) == [Send(b"?", Heartbeat(FIRST, 2, 0))]
    assert crowd.live


def test_beats_go_out_in_time_and_repeat_formations_that_were_not_answered() -> None:
    crowd = members(2)
    enlist(crowd, offer(0, 2), offer(1, 2, layers=(4, 8)))
    crowd.receive(b"0a", Joined(FIRST, 0), 0.0)
    assert crowd.tick(0.0) == [
        Send(b"0a", Heartbeat(FIRST, 0, 0)),
        Send(b"1a", Formation(FIRST, "tcp://head:9", 100)),
    ]
    assert crowd.tick(BEAT_SECONDS / 2) == []
    assert len(crowd.tick(BEAT_SECONDS)) == 2


def test_epochs_begin_above_zero() -> None:
    with pytest.raises(ValueError, match="first_epoch"):
        Members(1, "r1", "tcp://head:9", NO_EPOCH)
