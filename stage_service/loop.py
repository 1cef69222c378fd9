"""A stage's sockets and clock, around its worker. One thread; nothing else touches the sockets.

    turn: wait -> listen to the head -> take one batch, compute, pass on -> say what is due

The control channel is read before every batch, so that a cancellation or a new formation is never late by more than
the step under way. A batch that cannot be computed, or cannot be passed on, leaves a hole that no later batch may
cross: the stage then leaves the epoch, and says so.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Protocol

from pipedec.cost import StepTimes
from pipedec.errors import ProtocolError
from pipedec.health import Health
from pipedec.logs import fields
from pipedec.metrics.stage import StageMetrics
from pipedec.wire import codec
from pipedec.wire.codec import Activation, BatchFrames, Buffer, FromHead
from pipedec.wire.messages import NO_EPOCH, Batch, Cancel, Formation, Refused, Register, Shutdown, Started, Verdict
from pipedec.wire.sockets import ControlClient, DataReceiver, DataSender, Poller, Transport
from pipedec.wire.wakeup import Wakeup
from stage_service.accounts import TimeByState, UsefulRows
from stage_service.session import Session

WANT_AT = 0.75  # of a step's layers: the next batch is composed as late as it can be and still arrive in time

_log = logging.getLogger(__name__)


class Result(Protocol):
    """What a step produced: rows computed, and an activation to pass on or, on the last stage, a verdict."""

    @property
    def rows(self) -> int: ...

    @property
    def activation(self) -> Activation | None: ...

    @property
    def verdict(self) -> Verdict | None: ...


class Worker(Protocol):
    """What computes; `StageWorker` is one. `step` raises `ProtocolError` for an impossible batch, `MemoryError` for one
    that is too large."""

    def reset(self, epoch: int, num_slots: int) -> None: ...

    def cancel(self, cancel: Cancel) -> None: ...

    def step(
        self, batch: Batch, activation: Activation | None, progress: Callable[[float], None] | None = None
    ) -> Result: ...


class StageLoop:
    """Serves one stage. `register` is what it offers; `receiver` is where its predecessor's batches arrive."""

    def __init__(
        self,
        worker: Worker,
        register: Register,
        transport: Transport,
        receiver: DataReceiver[BatchFrames],
        head_address: str,
        metrics: StageMetrics,
        health: Health,
    ) -> None:
        self._worker, self._transport, self._receiver = worker, transport, receiver
        self._head_address, self._metrics, self._health = head_address, metrics, health
        self._session = Session(register)
        self._want_at = want_at(register.layers[1] - register.layers[0])
        self._times, self._useful = StepTimes(), UsefulRows()
        self._time = TimeByState(metrics.seconds)
        self._wakeup = Wakeup()
        self._control = self._call_head()
        self._poller = Poller(self._receiver, self._wakeup, self._control)
        self._sender: DataSender | None = None
        self._joining: Formation | None = None  # reset, but the successor is not connected yet
        self._next_step = 0
        self._wanted = (NO_EPOCH, 0)  # the epoch and step that `Started` was last said of
        self._heard: deque[FromHead] = deque()  # while a step was under way
        self._malformed = 0
        self._stopping = False
        metrics.kv_slots = register.slots

    def stop(self) -> None:
        """Makes `run` return after the step under way. May be called from a signal handler or another thread."""
        self._stopping = True
        self._wakeup.set()

    def run(self) -> None:
        """Serve until `stop`. Whatever the worker raises but `ProtocolError` ends it: the process starts anew."""
        try:
            while not self._stopping:
                self._turn()
        finally:
            self._hang_up()
            self._control.close()
            self._wakeup.close()

    def _turn(self) -> None:
        self._poller.wait(0.0 if self._heard else self._session.timeout(time.monotonic()))
        self._wakeup.clear()
        self._listen()
        self._take_batch()
        self._speak()

    def _listen(self) -> None:
        while (message := self._heard.popleft() if self._heard else self._control.receive()) is not None:
            if isinstance(message, Refused) and message.reason != self._session.refusal:
                _log.warning("refused by the head", extra=fields(reason=message.reason))
            self._session.hear(message, time.monotonic())
            self._obey(message)
        if self._joining is not None and self._sender is not None and self._sender.connected():
            self._join(self._joining, self._sender)

    def _obey(self, message: FromHead) -> None:
        match message:
            case Formation():
                self._form(message)
            case Cancel(epoch) if epoch == self._session.epoch:
                self._worker.cancel(message)
            case Shutdown(reason):
                self._leave(f"the head shuts down: {reason}")

    def _form(self, formation: Formation) -> None:
        """A new epoch: forget all requests, and connect to the successor. What is repeated is answered again."""
        if formation.epoch == self._session.epoch:
            self._control.send(self._session.join(formation.epoch))
            return
        if formation == self._joining:
            return
        self._hang_up()
        if formation.epoch == NO_EPOCH or not 0 < formation.slots <= self._session.register.slots:
            self._drop_impossible(f"a formation asks for {formation.slots} slots in epoch {formation.epoch}")
            return
        credits = self._session.register.stages + 2
        try:
            self._sender = DataSender(self._transport, formation.successor, credits=credits)
        except ProtocolError as error:
            self._drop_impossible(str(error))
            return
        self._worker.reset(formation.epoch, formation.slots)
        self._joining = formation
        self._poller.watch(self._sender)

    def _join(self, formation: Formation, sender: DataSender) -> None:
        self._poller.forget(sender)
        self._joining = None
        self._next_step = 0
        self._control.send(self._session.join(formation.epoch))
        self._time.enter("idle")
        self._metrics.formations += 1
        self._report()
        _log.info("epoch joined", extra=fields(epoch=formation.epoch, slots=formation.slots, successor=sender.address))

    def _take_batch(self) -> None:
        frames = self._receiver.receive()
        if frames is None:
            return
        self._metrics.received_bytes += _num_bytes(frames)
        batch, epoch = frames.batch, self._session.epoch
        if epoch == NO_EPOCH or batch.epoch != epoch or batch.step < self._next_step:
            self._metrics.dropped["stale"] += 1
        elif batch.step > self._next_step:
            self._leave(f"step {batch.step} came, but {self._next_step} did not")
        else:
            self._next_step += 1
            self._serve(frames)

    def _serve(self, frames: BatchFrames) -> None:
        batch = frames.batch
        self._time.enter("busy")
        try:
            result = self._worker.step(batch, frames.activation, self._progress)
        except ProtocolError as error:
            self._drop_impossible(f"step {batch.step}: {error}")
            self._leave(f"step {batch.step} could not be computed")
            return
        except MemoryError as error:  # the weights are still there, and with all requests gone there is room again
            _log.error("out of memory", extra=fields(epoch=batch.epoch, step=batch.step, reason=error))
            self._leave(f"step {batch.step} needs more memory than there is")
            return
        except Exception:
            _log.error("step failed; this process ends", extra=fields(epoch=batch.epoch, step=batch.step))
            raise
        self._want_more()  # a batch of which nothing was computed made no progress
        self._count(batch, result.rows, self._time.enter("blocked"))
        if self._pass_on(frames.header, result):
            self._time.enter("idle")
        else:
            self._leave(f"step {batch.step} could not be passed on")

    def _count(self, batch: Batch, rows: int, seconds: float) -> None:
        self._times.add(rows, seconds)
        useful, useful_seconds = self._useful.add(batch, rows, seconds)
        self._metrics.step(rows, seconds)
        self._metrics.useful_rows += useful
        self._metrics.useful_seconds += useful_seconds
        self._metrics.cancelled_rows += batch.num_rows - rows

    def _progress(self, done: float) -> None:
        """Between two layers: beat, hear of cancellations, and ask for the next batch while this one still computes.

        Anything else that the head says must wait: a formation would pull the state from under the step.
        """
        now = time.monotonic()
        while (message := self._control.receive()) is not None:
            self._session.notice(now)
            if isinstance(message, Cancel):
                self._obey(message)
            else:
                self._heard.append(message)
        self._beat(now)
        if done >= self._want_at:
            self._want_more()

    def _want_more(self) -> None:
        """Stage 0 tells the head, once per step, that it will soon have nothing to do. An only stage says so by its
        verdict: the batch after it is worth waiting for what it decides."""
        session, step = self._session, self._next_step - 1
        if session.register.stage or session.register.stages == 1 or self._wanted == (session.epoch, step):
            return
        self._wanted = (session.epoch, step)
        self._control.send(Started(session.epoch, 0, step))

    def _pass_on(self, header: bytes, result: Result) -> bool:
        assert self._sender is not None, "there is a successor in every epoch"
        if result.verdict is not None:
            frames: tuple[Buffer, ...] = (codec.encode(result.verdict),)
        else:
            assert result.activation is not None, "a step ends in an activation or a verdict"
            frames = (header, *codec.encode_activation(result.activation))
        self._metrics.sent_bytes += sum(map(len, frames))
        return self._sender.send(*frames)

    def _speak(self) -> None:
        now = time.monotonic()
        if self._session.is_silent(now):
            _log.warning("head silent; connecting anew", extra=fields(head=self._head_address))
            self._poller.forget(self._control)
            self._malformed -= self._control.malformed
            self._control.close()
            self._control = self._call_head()
            self._poller.watch(self._control)
        self._beat(now)

    def _beat(self, now: float) -> None:
        """Also between the layers of a long step, which must not look like silence."""
        self._health.beat()
        for message in self._session.due(now, max(0, self._next_step - 1), self._times.snapshot()):
            self._control.send(message)
            self._report()

    def _report(self) -> None:
        malformed = self._receiver.malformed + self._control.malformed
        self._metrics.dropped["malformed"] += malformed - self._malformed
        self._malformed = malformed
        self._metrics.unauthenticated = self._receiver.rejected
        self._metrics.formed = self._session.epoch != NO_EPOCH
        self._metrics.epoch = self._session.epoch
        self._time.flush()
        self._health.reason = self._session.not_ready_reason()

    def _drop_impossible(self, what: str) -> None:
        self._metrics.dropped["impossible"] += 1
        _log.error("message dropped", extra=fields(epoch=self._session.epoch, reason=what))

    def _leave(self, reason: str) -> None:
        """This epoch is over for this stage: without each of its batches the KV would be wrong."""
        _log.warning("epoch left", extra=fields(epoch=self._session.epoch, step=self._next_step, reason=reason))
        self._hang_up()

    def _hang_up(self) -> None:
        self._session.leave()
        self._time.enter("unformed")
        self._report()
        if self._sender is not None:
            if self._joining is not None:
                self._poller.forget(self._sender)
            self._sender.close()
        self._sender = self._joining = None

    def _call_head(self) -> ControlClient:
        self._session.connect(time.monotonic())
        return ControlClient(self._transport, self._head_address, self._session.register.incarnation)


def want_at(layers: int) -> float:
    """The share of a step's layers after which the next batch is asked for. It is told before each of them, so that of
    few it must be that of all but the last."""
    return min(WANT_AT, (layers - 1) / layers)


def _num_bytes(frames: BatchFrames) -> int:
    activation = frames.activation
    if activation is None:
        return len(frames.header)
    return len(frames.header) + len(activation.data) + (0 if activation.alive is None else activation.alive.nbytes)
