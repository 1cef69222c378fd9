"""Stages over real sockets, with workers that count instead of computing."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from pipedec.cost import COLD_STEPS
from pipedec.errors import ProtocolError
from pipedec.health import Health
from pipedec.metrics.stage import StageMetrics
from pipedec.wire.codec import Activation, encode
from pipedec.wire.messages import (
    Batch,
    Cancel,
    Close,
    Commit,
    Decision,
    Formation,
    Heartbeat,
    Register,
    Row,
    Rows,
    Shutdown,
    Started,
    Verdict,
)
from pipedec.wire.sockets import INSECURE, Bind, DataSender, Transport, batch_receiver
from stage_service.loop import StageLoop, want_at
from stage_service.worker import StageResult
from tests.head import TestHead
from tests.logs import logged
from tests.sockets import DEADLINE, until

STAGES, WIDTH = 3, 2


@dataclass
class CountingWorker:
    """Adds one to every number that passes; the last one decides the sum of each row. `events` is what it was told."""

    stage: int
    stages: int
    events: list[object] = field(default_factory=list)

    def reset(self, epoch: int, num_slots: int) -> None:
        self.events.append(("reset", epoch, num_slots))

    def cancel(self, cancel: Cancel) -> None:
        self.events.append(cancel)

    def step(
        self, batch: Batch, activation: Activation | None, progress: Callable[[float], None] | None = None
    ) -> StageResult:
        self.events.append((batch.epoch, batch.step))
        for op in batch.ops:
            if isinstance(op, Close):
                raise ProtocolError(f"request {op.request} is not open")
            if isinstance(op, Commit):
                raise RuntimeError("the worker has a bug")
        if progress is not None:
            progress(0.9)
        rows = len(batch.rows)
        values = np.zeros((rows, WIDTH), dtype=np.int32)
        if activation is not None:
            values = np.frombuffer(activation.data, dtype=np.int32).reshape(rows, WIDTH)
        values = values + 1
        if self.stage < self.stages - 1:
            return StageResult(rows, activation=Activation(values.data.cast("B"), rows))
        decisions = tuple(Decision(request, (int(row.sum()),)) for request, row in enumerate(values))
        return StageResult(rows, verdict=Verdict(batch.epoch, batch.step, decisions))


class Stage:
    """One stage's process, as a thread."""

    def __init__(
        self, transport: Transport, head_address: str, index: int, incarnation: str, stages: int = STAGES
    ) -> None:
        self.worker, self.registry, self.health = CountingWorker(index, stages), CollectorRegistry(), Health()
        row_bytes = 4 * WIDTH if index else None
        receiver = batch_receiver(transport, Bind("127.0.0.1"), row_bytes=row_bytes, credits=8)
        span = (index, index + 1)
        offer = Register(index, stages, span, "r1", receiver.address, 64 + index, incarnation, WIDTH, "int32")
        metrics = StageMetrics(self.registry, index)
        self.loop = StageLoop(self.worker, offer, transport, receiver, head_address, metrics, self.health)
        self.offer, self.error = offer, None
        self._receiver = receiver
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    error: Exception | None

    def _run(self) -> None:
        try:
            self.loop.run()
        except RuntimeError as error:
            self.error = error

    def stop(self) -> None:
        self.loop.stop()
        self.join()
        self._receiver.close()

    def join(self) -> None:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()

    def dropped(self, reason: str) -> float:
        labels = {"stage": str(self.offer.stage), "reason": reason}
        return self.registry.get_sample_value("pipedec_stage_dropped_total", labels) or 0.0


@dataclass
class Pipeline:
    head: TestHead
    stages: list[Stage]
    start: Callable[[int, str], Stage]


@pytest.fixture
def pipeline() -> Iterator[Pipeline]:
    with ExitStack() as stack:
        transport = stack.enter_context(Transport(INSECURE))
        head = TestHead(Transport(INSECURE), STAGES)
        stack.callback(head.close)

        def start(index: int, incarnation: str) -> Stage:
            stage = Stage(transport, head.control.address, index, incarnation)
            stack.callback(stage.stop)
            return stage

        yield Pipeline(head, [start(index, f"a{index}") for index in range(STAGES)], start)


def batch(epoch: int, step: int, *ops: Close | Commit) -> Batch:
    return Batch(epoch, step, ops, Rows.of([Row(1, i, i - 1, 5, i, i, ()) for i in range(2)]))


def verdict(epoch: int, step: int) -> Verdict:
    return Verdict(epoch, step, (Decision(0, (WIDTH * STAGES,)), Decision(1, (WIDTH * STAGES,))))


def test_batches_pass_every_stage_in_order(pipeline: Pipeline) -> None:
    head = pipeline.head
    epoch = head.form()
    head.send(*(batch(epoch, step) for step in range(4)))
    assert [head.verdict() for _ in range(4)] == [verdict(epoch, step) for step in range(4)]
    head.hear(Heartbeat)
    for stage in pipeline.stages:
        assert stage.worker.events == [("reset", epoch, 64), *((epoch, step) for step in range(4))]
        assert stage.health.reason == ""
        assert stage.health.stuck_seconds() == 0.0


def test_the_first_stage_says_when_it_begins_and_all_say_how_far_they_are(pipeline: Pipeline) -> None:
    head = pipeline.head
    epoch = head.form()
    steps = COLD_STEPS + 1  # the first of a size are not timed
    head.send(*(batch(epoch, step) for step in range(steps)))
    while (started := head.hear(Started)) != Started(epoch, 0, steps - 1):
        assert started in [Started(epoch, 0, step) for step in range(steps)]
    while (beat := head.hear(Heartbeat)) and isinstance(beat, Heartbeat) and beat.step < steps - 1:
        assert beat.epoch == epoch
    assert isinstance(beat, Heartbeat)
    assert [rows for rows, seconds in beat.seconds if seconds > 0] == [2]


def test_what_came_during_a_step_is_obeyed_when_it_ends(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only when something else comes, as the next beat of a second later."""
    monkeypatch.setattr("stage_service.session.BEAT_SECONDS", 2 * DEADLINE)
    head, stage = pipeline.head, pipeline.stages[0]
    epoch = head.form()
    step = stage.worker.step

    def long(batch: Batch, activation: Activation | None, progress: Callable[[float], None]) -> StageResult:
        began.set()
        while not stage.loop._heard or not isinstance(stage.loop._heard[-1], Formation):
            progress(0.1)
        while stage.loop._session.timeout(time.monotonic()) < DEADLINE:
            progress(0.1)
        heard.set()
        return step(batch, activation, progress)

    began, heard = threading.Event(), threading.Event()
    monkeypatch.setattr(stage.worker, "step", long)
    head.send(batch(epoch, 0))
    assert began.wait(DEADLINE)
    head.obey(head.members.abandon("another stage is lost", time.monotonic()))
    until(lambda: head.turn() or heard.is_set())
    until(lambda: stage.worker.events[-1] == ("reset", epoch + 1, 64))  # while the head says nothing more


@pytest.mark.parametrize("layers", range(1, 7))
def test_the_next_batch_is_asked_for_before_a_step_is_over(layers: int) -> None:
    """Progress is told before each layer, of which there may be few."""
    asks = [layer for layer in range(layers) if layer / layers >= want_at(layers)]
    assert asks
    assert asks[0] >= 0.75 * layers - 1


def test_an_only_stage_lets_its_verdict_ask_for_the_next_batch() -> None:
    with Transport(INSECURE) as transport, closing(TestHead(Transport(INSECURE), 1)) as head:
        stage = Stage(transport, head.control.address, 0, "a0", stages=1)
        try:
            epoch = head.form()
            head.heard.clear()
            head.send(*(batch(epoch, step) for step in range(3)))
            assert [head.verdict().step for _ in range(3)] == [0, 1, 2]
            until(lambda: head.turn() or any(isinstance(said, Heartbeat) and said.step == 2 for said in head.heard))
            assert not [said for said in head.heard if isinstance(said, Started)]
        finally:
            stage.stop()


def test_a_cancellation_is_known_before_the_next_batch(pipeline: Pipeline) -> None:
    head = pipeline.head
    epoch = head.form()
    cancel = Cancel(epoch, 0, ((1, 1),))
    head.tell(Cancel(epoch - 1, 0, ((9, 9),)))
    head.tell(cancel)
    until(lambda: all(cancel in stage.worker.events for stage in pipeline.stages))
    head.send(batch(epoch, 0))
    head.verdict()
    for stage in pipeline.stages:
        assert stage.worker.events == [("reset", epoch, 64), cancel, (epoch, 0)]


def test_batches_of_other_epochs_and_replays_are_dropped_and_counted(pipeline: Pipeline) -> None:
    head = pipeline.head
    epoch = head.form()
    head.send(batch(epoch - 1, 0), batch(epoch + 1, 0), batch(0, 0), batch(epoch, 0), batch(epoch, 0), batch(epoch, 1))
    assert [head.verdict(), head.verdict()] == [verdict(epoch, 0), verdict(epoch, 1)]
    assert pipeline.stages[0].dropped("stale") == 4
    assert pipeline.stages[1].dropped("stale") == 0


def test_a_hole_in_the_steps_ends_the_epoch_and_the_next_works(pipeline: Pipeline) -> None:
    head = pipeline.head
    epoch = head.form()
    head.send(batch(epoch, 0), batch(epoch, 2))
    assert head.verdict() == verdict(epoch, 0)
    later = head.form(after=epoch)
    head.send(batch(later, 0))
    assert head.verdict() == verdict(later, 0)
    assert [event for event in pipeline.stages[0].worker.events if event == (epoch, 2)] == []


def test_an_impossible_batch_ends_the_epoch_not_the_process(pipeline: Pipeline) -> None:
    head = pipeline.head
    epoch = head.form()
    head.send(batch(epoch, 0, Close(3)))
    later = head.form(after=epoch)
    head.send(batch(later, 0))
    assert head.verdict() == verdict(later, 0)
    assert pipeline.stages[0].dropped("impossible") == 1


def test_a_malformed_message_is_counted_and_the_stream_goes_on(pipeline: Pipeline) -> None:
    head, stage = pipeline.head, pipeline.stages[1]
    epoch = head.form()
    with Transport(INSECURE) as transport:
        stranger = DataSender(transport, stage.offer.address, credits=4)
        assert stranger.connected(DEADLINE)
        assert stranger.send(b"junk")
        assert stranger.send(encode(batch(epoch, 0)), b"", b"too short")
        until(lambda: stage.dropped("malformed") == 2)
    head.send(batch(epoch, 0))
    assert head.verdict() == verdict(epoch, 0)


def test_a_bug_in_the_worker_ends_the_process_with_it(pipeline: Pipeline, caplog: pytest.LogCaptureFixture) -> None:
    head = pipeline.head
    epoch = head.form()
    head.send(batch(epoch, 0, Commit(1, (2,))))
    pipeline.stages[0].join()
    assert str(pipeline.stages[0].error) == "the worker has a bug"
    assert f"step failed; this process ends epoch={epoch} step=0" in logged(caplog)


def test_a_stage_that_is_replaced_costs_the_others_nothing(pipeline: Pipeline) -> None:
    head = pipeline.head
    epoch = head.form()
    pipeline.stages[1].stop()
    pipeline.start(1, "b1")
    later = head.form(after=epoch)
    head.send(batch(later, 0))
    assert head.verdict() == verdict(later, 0)
    assert pipeline.stages[2].worker.events == [("reset", epoch, 64), ("reset", later, 64), (later, 0)]


def test_a_new_head_at_the_old_address_gets_the_same_processes(pipeline: Pipeline) -> None:
    head = pipeline.head
    epoch = head.form()
    head.close()
    with closing(TestHead(Transport(INSECURE), STAGES, port=int(head.control.address.rpartition(":")[2]))) as successor:
        later = successor.form(after=epoch)
        successor.send(batch(later, 0))
        assert successor.verdict() == verdict(later, 0)
        assert [stage.worker.events[0] for stage in pipeline.stages] == [("reset", epoch, 64)] * STAGES


def test_a_head_that_leaves_in_good_order_ends_the_epoch(pipeline: Pipeline) -> None:
    head = pipeline.head
    epoch = head.form()
    head.tell(Shutdown("bye"))
    assert head.form(after=epoch) > epoch


def test_refused_stages_say_why(pipeline: Pipeline) -> None:
    stage = pipeline.start(0, "c0")
    pipeline.head.members.revision = "r2"

    def refused() -> bool:
        pipeline.head.turn()
        return "the pipeline has r2" in stage.health.reason

    until(refused)
