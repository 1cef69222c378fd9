"""A whole pipeline in one process on a simulated clock: the real scheduler, stage workers and draft model.

Every batch is really computed; only time is simulated. A stage takes `Timing.stage(rows)` seconds for a batch, a
message takes `Timing.link` seconds, a run of the draft model `Timing.draft(rows)`. So speed-ups at any number of
stages are measured exactly and without noise on any machine, and tests are deterministic.
"""

from __future__ import annotations

import heapq
import itertools
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from draft_service.draft.drafter import Proposer
from draft_service.generation import GenerationRequest, RequestStatistics
from draft_service.schedule.scheduler import Scheduler
from pipedec.proposals import Proposals
from pipedec.wire.codec import Activation
from pipedec.wire.messages import Batch, Cancel, Verdict
from stage_service.worker import StageResult


class Stage(Protocol):
    """What the simulation needs of a stage; `StageWorker` is one."""

    def reset(self, epoch: int, num_slots: int) -> None: ...

    def cancel(self, cancel: Cancel) -> None: ...

    def step(self, batch: Batch, activation: Activation | None) -> StageResult: ...


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, as functions of the rows in a batch. A batch without rows takes a stage no time."""

    stage: Callable[[int], float] = lambda rows: 0.020
    draft: Callable[[int], float] = lambda rows: 0.005
    link: float = 0.0005


@dataclass(slots=True)
class Generated:
    """One request's outcome: its tokens, and when each was known to the scheduler (seconds)."""

    submitted: float
    tokens: list[int] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    statistics: RequestStatistics | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """A stage was busy with a batch from `start` to `end`; for the picture of a pipeline's timeline."""

    stage: int
    step: int
    rows: int
    start: float
    end: float


@dataclass(slots=True)
class _Running:
    """The batch that a stage computes, and those of its rows that are not cancelled yet."""

    batch: Batch
    result: StageResult
    start: float
    alive: set[tuple[int, int]]

    def cancel(self, nodes: Iterable[tuple[int, int]]) -> bool:
        """Whether nothing of the batch is worth computing any more."""
        if not self.alive.isdisjoint(nodes):
            self.alive.difference_update(nodes)
            return not self.alive and not self.batch.num_prefill
        return False


@dataclass(slots=True)
class _StageState:
    worker: Stage
    queue: deque[tuple[Batch, Activation | None]] = field(default_factory=deque)
    running: _Running | None = None


class Simulation:
    """`run` decodes requests to their end. One simulation may run several loads, one after the other."""

    def __init__(
        self,
        scheduler: Scheduler,
        stages: Sequence[Stage],
        draft: Proposer | None,
        num_slots: int,
        timing: Timing | None = None,
        after_event: Callable[[], None] | None = None,
    ) -> None:
        self.scheduler = scheduler
        self.draft = draft
        self.timing = timing or Timing()
        self.now = 0.0
        self.spans: list[Span] = []
        self.generated: dict[int, Generated] = {}
        self._after_event = after_event
        self._stages = [_StageState(worker) for worker in stages]
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self.form(num_slots)

    def form(self, num_slots: int) -> None:
        """Begin a new epoch: what is in flight is lost, requests start again from what they emitted."""
        epoch = 0 if self.scheduler.epoch is None else self.scheduler.epoch + 1
        self._events.clear()
        for state in self._stages:
            state.worker.reset(epoch, num_slots)
            state.queue.clear()
            state.running = None
        if self.draft is not None:
            self.draft.reset(num_slots)
        self.scheduler.start_epoch(epoch, num_slots)
        self._at(0.0, self._pump)

    def run(
        self, requests: Mapping[int, GenerationRequest], until: Callable[[], bool] = lambda: False
    ) -> dict[int, Generated]:
        """Submit all requests now and decode until every one is finished, or `until` says stop."""
        for key, request in requests.items():
            self.generated[key] = Generated(self.now)
            self.scheduler.submit(key, request)
        self._at(0.0, self._pump)
        while self._events and not until():
            self.now, _, event = heapq.heappop(self._events)
            event()
            if self._after_event:
                self._after_event()
        return self.generated

    def _at(self, delay: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay, next(self._order), event))

    def _pump(self) -> None:
        """Whatever the scheduler wants done now, as the draft pod's loop does it."""
        if (cancel := self.scheduler.take_cancel()) is not None:
            for index in range(len(self._stages)):
                self._at(self.timing.link, lambda index=index: self._cancelled(index, cancel))  # type: ignore[misc]
        self.scheduler.take_admitted()
        while (batch := self.scheduler.compose()) is not None:
            self._at(self.timing.link, lambda batch=batch: self._arrived(0, batch, None))  # type: ignore[misc]
        if self.draft is not None and (run := self.scheduler.compose_draft()) is not None:
            batch, proposals = run.batch, self.draft.propose(*run)
            self._at(self.timing.draft(batch.num_rows), lambda: self._drafted(batch.epoch, proposals))

    def _drafted(self, epoch: int, proposals: Proposals) -> None:
        self.scheduler.on_proposals(epoch, proposals)
        self._pump()

    def _arrived(self, index: int, batch: Batch, activation: Activation | None) -> None:
        self._stages[index].queue.append((batch, activation))
        self._start_next(index)

    def _cancelled(self, index: int, cancel: Cancel) -> None:
        state = self._stages[index]
        state.worker.cancel(cancel)
        if state.running is not None and state.running.cancel(cancel.nodes):
            result = state.running.result
            if result.activation is not None:
                result = StageResult(0, Activation(b"", 0, np.zeros(0, np.int32)))
            state.running.result = result
            self._finished(index, state.running)

    def _start_next(self, index: int) -> None:
        state = self._stages[index]
        if state.running is not None or not state.queue:
            return
        batch, activation = state.queue.popleft()
        result = state.worker.step(batch, activation)
        seconds = self.timing.stage(result.rows) if result.rows else 0.0
        state.running = running = _Running(batch, result, self.now, _nodes(batch))
        if index == 0 and len(self._stages) > 1:  # in time for the next batch to arrive just when this one is done
            self._at(max(self.timing.link, seconds - self.timing.link), lambda: self._wanted(batch))
        self._at(seconds, lambda: self._finished(index, running))

    def _wanted(self, batch: Batch) -> None:
        if batch.epoch == self.scheduler.epoch:
            self.scheduler.on_started(batch.step)
            self._pump()

    def _finished(self, index: int, running: _Running) -> None:
        if self._stages[index].running is not running:  # cut short by a cancellation
            return
        self._stages[index].running = None
        batch, result = running.batch, running.result
        self.spans.append(Span(index, batch.step, result.rows, running.start, self.now))
        if result.verdict is not None:
            self._at(self.timing.link, lambda: self._decided(result.verdict))
        else:
            self._at(self.timing.link, lambda: self._arrived(index + 1, batch, result.activation))
        self._start_next(index)

    def _decided(self, verdict: Verdict | None) -> None:
        assert verdict is not None
        self.scheduler.on_started(verdict.step)
        for key, event in self.scheduler.on_verdict(verdict):
            generated = self.generated[key]
            generated.tokens.append(event.token)
            generated.times.append(self.now)
            generated.statistics = event.statistics
        for _, error in self.scheduler.take_failed():
            raise error
        self._pump()


def _nodes(batch: Batch) -> set[tuple[int, int]]:
    return set(zip(batch.rows.request.tolist(), batch.rows.node.tolist(), strict=True))
