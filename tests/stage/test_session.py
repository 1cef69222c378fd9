"""What a stage tells its head, and when."""

from __future__ import annotations

from pipedec.wire.messages import BEAT_SECONDS, NO_EPOCH, Formation, Heartbeat, Joined, Refused, Register
from stage_service.session import REFUSED_SECONDS, SILENCE_SECONDS, Session

REGISTER = Register(1, 2, (4, 8), "r1", "tcp://h:1", 64, "i1", 32, "float32")


def session(now: float = 0.0) -> Session:
    fresh = Session(REGISTER)
    fresh.connect(now)
    return fresh


def joined(epoch: int = 7) -> Session:
    member = session()
    member.due(0.0, 0, ())
    assert member.join(epoch) == Joined(epoch, 1)
    member.hear(Heartbeat(epoch, 1, 0), 0.0)
    return member


def test_it_registers_and_beats_until_it_is_in_an_epoch() -> None:
    stage = session()
    assert stage.not_ready_reason() == "waiting for the head"
    for now in (0.0, BEAT_SECONDS):
        assert stage.due(now, 0, ()) == [REGISTER, Heartbeat(NO_EPOCH, 1, 0)]
        assert stage.due(now, 0, ()) == []
        assert stage.timeout(now) == BEAT_SECONDS
    stage.hear(Heartbeat(6, 1, 0), BEAT_SECONDS)
    assert stage.not_ready_reason() == "waiting for the other stages"
    stage.join(7)
    assert stage.not_ready_reason() == ""
    assert stage.due(2 * BEAT_SECONDS, 5, ((8, 0.1),)) == [Heartbeat(7, 1, 5, ((8, 0.1),))]


def test_a_head_of_another_epoch_is_registered_with() -> None:
    stage = joined(7)
    stage.hear(Heartbeat(9, 1, 0), 1.5)
    assert stage.due(1.5, 0, ()) == [REGISTER, Heartbeat(7, 1, 0)]
    assert stage.epoch == 7


def test_leaving_is_said_at_once() -> None:
    stage = joined(7)
    assert stage.due(0.5, 3, ()) == []
    stage.leave()
    assert stage.timeout(0.5) == 0.0
    assert stage.due(0.5, 3, ()) == [Heartbeat(NO_EPOCH, 1, 3)]


def test_a_refusal_is_shown_and_asked_again_later() -> None:
    stage = session()
    stage.due(0.0, 0, ())
    stage.hear(Refused("revision r1, but the pipeline has r2"), 0.0)
    assert stage.not_ready_reason() == "the head refuses this stage: revision r1, but the pipeline has r2"
    assert REGISTER not in stage.due(REFUSED_SECONDS - 0.1, 0, ())
    assert REGISTER in stage.due(REFUSED_SECONDS, 0, ())
    stage.hear(Formation(7, "tcp://h:2", 8), REFUSED_SECONDS)
    stage.join(7)
    assert stage.not_ready_reason() == ""


def test_silence_is_counted_from_the_last_word_or_the_connection() -> None:
    stage = session(now=100.0)
    assert not stage.is_silent(100.0 + SILENCE_SECONDS)
    assert stage.is_silent(100.1 + SILENCE_SECONDS)
    stage.connect(200.0)
    assert not stage.is_silent(200.0 + SILENCE_SECONDS)
    stage.notice(205.0)  # a word that comes within a long step counts, though it is heard after it
    assert not stage.is_silent(205.0 + SILENCE_SECONDS)
    stage.hear(Heartbeat(6, 1, 0), 210.0)
    assert not stage.is_silent(210.0 + SILENCE_SECONDS)
    assert stage.is_silent(210.1 + SILENCE_SECONDS)
