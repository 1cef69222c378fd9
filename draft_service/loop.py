"""The head of the pipeline: sockets and clock around the scheduler, the formation and the draft model.

One thread owns them all. Other threads talk to it through `submit`, `abort` and `stop`, which only leave a note and
wake it; it talks to them through the callbacks given to `listen`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from draft_service.draft.drafter import Proposer
from draft_service.draft.supervisor import DraftSupervisor
from draft_service.formation import Action, EpochBegun, EpochLive, EpochLost, Members, Send
from draft_service.generation import GenerationRequest
from draft_service.journal import Journal
from draft_service.live.tap import Tap
from draft_service.schedule.scheduler import Output, Scheduler
from draft_service.status import HeadStatus
from draft_service.transit import Patience, Transit
from pipedec.cost import StepCost
from pipedec.errors import PipeDecError, ProtocolError, RequestError, UnavailableError
from pipedec.health import Health
from pipedec.logs import fields
from pipedec.metrics.head import HeadState
from pipedec.wire import codec
from pipedec.wire.messages import BEAT_SECONDS, Heartbeat, Refused, Shutdown, Started, Verdict
from pipedec.wire.sockets import ControlServer, DataReceiver, DataSender, Poller, Transport
from pipedec.wire.wakeup import Wakeup

WARM_UP = -1  # key of the request that proves that a forward pass works before the service says it is ready
WARM_UP_PROMPT = (0, 0)
CONNECT_SECONDS = 5.0  # for the link to stage 0, once that stage has said that it listens
PATIENCE_SECONDS = (10.0, 120.0)  # for a batch in the pipeline: at least, and as long as none has ever come back

Fail = Callable[[PipeDecError, int | None], None]  # ends the request of this key, or every one

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Links:
    """The sockets that the head listens on, and what it opens others with."""

    transport: Transport
    control: ControlServer
    verdicts: DataReceiver[Verdict]


class Head:
    """Runs in `run`, in a thread of the caller's; ends after `stop`, or with an exception, which `run` raises.

    `patience` says how long the pipeline may take to answer a batch before the epoch is given up, `draft_patience` how
    long the draft model may take before decoding goes on without it.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        members: Members,
        links: Links,
        draft: Proposer | None,
        *,
        cost: StepCost | None = None,
        draft_cost: StepCost | None = None,
        patience: Patience | None = None,
        draft_patience: Patience | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._members = members
        self._links = links
        self._cost = cost
        self._notes: deque[Callable[[], None]] = deque()
        self._wakeup = Wakeup()
        self._draft: DraftSupervisor | None = None
        if draft is not None:
            self._draft = DraftSupervisor(draft, scheduler, self._note, draft_patience, draft_cost)
        self._transit = Transit(patience or Patience(*PATIENCE_SECONDS), scheduler.counts.round_trip)
        self._sender: DataSender | None = None
        self._poller = Poller(links.control, links.verdicts, self._wakeup)
        self._next_tick = 0.0
        self._rejected = 0
        self._journal = Journal()
        self._stopping = False
        self._deliver: Callable[[Sequence[Output]], None] = lambda outputs: None
        self._fail: Fail = lambda error, key: None
        self.status = HeadStatus()
        self.tap = Tap(members.stages)
        self.health = Health()

    # What other threads may call.

    def listen(self, deliver: Callable[[Sequence[Output]], None], fail: Fail) -> None:
        """Where events go, and what ends requests; both are called in the head's thread. Before `run`."""
        self._deliver, self._fail = deliver, fail

    def submit(self, key: int, request: GenerationRequest) -> None:
        self._note(lambda: self._scheduler.submit(key, request))

    def abort(self, key: int) -> None:
        self._note(lambda: self._scheduler.abort(key))

    def pause(self, key: int) -> None:
        """Nobody reads what comes of this request: let others have its place until `resume`."""
        self._note(lambda: self._scheduler.pause(key))

    def resume(self, key: int) -> None:
        self._note(lambda: self._scheduler.resume(key))

    def stop(self) -> None:
        """Tell the stages, and end `run`."""
        self._note(self._stop)

    def watch(self, wanted: bool) -> None:
        """Whether `tap` is to be filled from now on; asking anew begins anew."""
        tap, running = self.tap, self._scheduler.running
        self._note(lambda: tap.open(time.monotonic(), running.values()) if wanted else tap.close())

    def running(self) -> tuple[int, ...]:
        """The requests in the pipeline, by the ids that messages give them."""
        return tuple(self._scheduler.running)

    def state(self) -> HeadState:
        """For the metrics; a reading that is one turn old at most."""
        scheduler, links, heard = self._scheduler, self._links, self._members.heard(time.monotonic())
        return HeadState(
            running=len(scheduler.running),
            waiting=len(scheduler.waiting),
            in_flight=scheduler.in_flight,
            kv_slots=scheduler.num_slots,
            kv_slots_used=scheduler.num_slots_used,
            epoch=self._members.epoch,
            epoch_live=scheduler.epoch is not None,
            degraded=bool(self.status.degraded),
            malformed=links.control.malformed + links.verdicts.malformed,
            unauthenticated=self._rejected,
            present=[seconds <= self._members.silence for seconds in heard],
            heard=heard,
            steps={} if self._cost is None else self._cost.least(),
        )

    def _note(self, note: Callable[[], None]) -> None:
        self._notes.append(note)
        self._wakeup.set()

    # The head's own thread.

    def run(self) -> None:
        """Serve until `stop`. Every request is told when this ends otherwise."""
        try:
            while not self._stopping:
                self._turn()
        except BaseException:
            self.status = replace(self.status, ready=False, ever_ready=False, reason="stopped")  # nothing is taken now
            self._fail(UnavailableError("the pipeline's head has failed and is being restarted", retry_after=5.0), None)
            raise
        finally:
            self.status = replace(self.status, ready=False, ever_ready=False, reason="stopped")
            if self._draft is not None:
                self._draft.close()
            self._wakeup.close()

    def _turn(self) -> None:
        self._poller.wait(max(0.0, self._next_tick - time.monotonic()))
        self._wakeup.clear()
        self.health.beat()
        while self._notes:
            self._notes.popleft()()
        self._receive_control()
        self._receive_verdicts()
        now = time.monotonic()
        if now >= self._next_tick:
            self._next_tick = now + BEAT_SECONDS / 2
            self._tick(now)
        self._work()

    def _tick(self, now: float) -> None:
        self._act(self._members.tick(now))
        step = self._transit.oldest
        if (seconds := self._transit.overdue(now)) and step is not None:
            where = self._members.whereabouts(step)
            self._act(self._members.abandon(f"step {step} has not come back for {seconds:.0f} s; {where}", now))
        self._rejected = self._links.control.rejected + self._links.verdicts.rejected
        if self._draft is not None:
            self._draft.tick(now)
            self.status = replace(self.status, degraded=self._draft.degraded)
        if not self._members.live:
            waiting, missing = self._members.waiting_for(now), self._members.missing(now)
            self.status = replace(self.status, ready=False, reason=waiting, missing=missing)

    def _receive_control(self) -> None:
        while (received := self._links.control.receive()) is not None:
            peer, message = received
            if isinstance(message, Started) and message.epoch == self._scheduler.epoch and self._members.is_first(peer):
                self._scheduler.on_started(message.step)
            if isinstance(message, Heartbeat) and self._cost is not None and message.stage < self._members.stages:
                self._cost.observe(message.stage, message.seconds)
                self.tap.beat(time.monotonic(), message.stage, message.seconds)
            actions = self._members.receive(peer, message, time.monotonic())
            self._journal.heard(message, actions)
            self._act(actions)

    def _receive_verdicts(self) -> None:
        outputs: list[Output] = []
        while (verdict := self._links.verdicts.receive()) is not None:
            if self._is_due(verdict):
                self._scheduler.on_started(verdict.step)  # its own word of that may be lost
                outputs += self._scheduler.on_verdict(verdict)
        if any(key == WARM_UP for key, _ in outputs):
            self.status = replace(self.status, ready=True, ever_ready=True, reason="")
            _log.info("ready", extra=fields(epoch=self._scheduler.epoch, stages=self._members.stages))
            outputs = [output for output in outputs if output[0] != WARM_UP]
        if outputs:
            self._deliver(outputs)

    def _is_due(self, verdict: Verdict) -> bool:
        """A verdict that was lost must not become a hole in the text, nor one that came twice a repetition."""
        now = time.monotonic()
        try:
            if verdict.epoch == self._scheduler.epoch and self._transit.answered(verdict.step, now):
                if self.tap.watched:
                    self.tap.add(now, verdict)
                return True
        except ProtocolError as error:
            self._act(self._members.abandon(f"a verdict is lost: {error}", now))
        self._scheduler.counts.stale_verdicts += 1
        return False

    def _act(self, actions: Iterable[Action]) -> None:
        pending = deque(actions)
        while pending:
            match pending.popleft():
                case Send(peer, message):
                    self._scheduler.counts.refused_registrations += isinstance(message, Refused)
                    if not self._links.control.send(peer, message):
                        pending.extend(self._members.unreachable(peer, time.monotonic()))
                case EpochBegun(epoch, slots, address):
                    _log.info("epoch begun", extra=fields(epoch=epoch, stages=self._members.stages, slots=slots))
                    pending.extend(self._connect(address))
                case EpochLive(epoch, slots):
                    pending.extend(self._begin(epoch, slots))
                case EpochLost(epoch, reason):
                    _log.warning("epoch lost", extra=fields(epoch=epoch, step=self._transit.oldest, reason=reason))
                    self._scheduler.stop_epoch()
                    self._transit.clear()
                    self._scheduler.counts.epochs_lost += 1
                    self.tap.lost(time.monotonic(), epoch, reason)
                    self.status = replace(self.status, ready=False, reason=reason)

    def _connect(self, address: str) -> Iterable[Action]:
        if self._sender is not None:
            self._sender.close()
            self._sender = None
        try:
            self._sender = DataSender(self._links.transport, address, credits=self._scheduler.limits.stages + 2)
        except ProtocolError as error:
            first = next(filter(self._members.is_first, self._members.peers))
            return self._members.unreachable(first, time.monotonic(), f"stage 0 gives no data address: {error}")
        return ()

    def _begin(self, epoch: int, slots: int) -> Iterable[Action]:
        if self._sender is None or not self._sender.connected(CONNECT_SECONDS):
            return self._members.abandon("stage 0 cannot be reached on its data address", time.monotonic())
        _log.info("epoch live", extra=fields(epoch=epoch, stages=self._members.stages, slots=slots))
        self._scheduler.start_epoch(epoch, slots)
        self.tap.live(time.monotonic())
        if self._draft is not None:
            self._draft.begin(slots)
        ready = self.status.ever_ready
        self.status = replace(self.status, epoch=epoch, ready=ready, reason="warming up", missing=())
        if not self.status.ever_ready:
            self._scheduler.abort(WARM_UP)
            self._scheduler.submit(WARM_UP, GenerationRequest(WARM_UP_PROMPT, max_tokens=1, id="warm-up"))
        return ()

    def _work(self) -> None:
        """Say what failed, and send what can be sent: cancellations, the next batch, the draft model's next run."""
        for key, error in self._scheduler.take_failed():
            level = logging.WARNING if isinstance(error, RequestError) else logging.ERROR
            _log.log(level, "request given up", extra=fields(key=key, epoch=self._scheduler.epoch, reason=error))
            self._fail(error, key)
            if key == WARM_UP:  # nobody waits for it, and it is tried again in the next epoch alone
                self.status = replace(self.status, reason=f"the warm-up failed: {error}")
        if (cancel := self._scheduler.take_cancel()) is not None:
            for peer in self._links.control.send_all(self._members.peers, cancel):
                self._act(self._members.unreachable(peer, time.monotonic()))
        while (batch := self._scheduler.compose()) is not None:
            assert self._sender is not None
            self._admit(batch.step)
            if self._sender.send(codec.encode(batch)):
                self._transit.sent(batch.step, batch.num_rows, now := time.monotonic())
                if self.tap.watched:
                    self.tap.add(now, batch)
            else:
                self._act(self._members.abandon("stage 0 does not take batches", time.monotonic()))
        if self._draft is not None:
            self._draft.work()

    def _admit(self, step: int) -> None:
        now = time.monotonic()
        for sequence in self._scheduler.take_admitted():
            if sequence.statistics.admitted is None:
                sequence.statistics.admitted = now
            self._journal.admitted(sequence, self._scheduler.epoch, step)

    def _stop(self) -> None:
        self._stopping = True
        self._links.control.send_all(self._members.peers, Shutdown("the pipeline is being taken down"))
