"""The draft model as the head has it: a helper that may fail, be slow, and come back.

Decoding never waits for it. When it fails, or does not answer in time, the scheduler goes on without it, under policy
adaptive with what the text repeats; when it answers again, or after a while has been reset, its predictions come back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from draft_service.draft.drafter import Proposer
from draft_service.draft.thread import DraftThread, Outcome
from draft_service.schedule.scheduler import Scheduler
from draft_service.transit import Patience, Transit
from pipedec.cost import StepCost, StepTimes
from pipedec.logs import fields
from pipedec.wire.messages import Batch

BACKOFF = (1.0, 60.0)  # seconds until a draft model that failed is tried again: at first, and at most
SETTLED = 60.0  # seconds without a failure, after which the next one counts as the first

_log = logging.getLogger(__name__)


class DraftSupervisor:
    """Runs `draft` for `scheduler`. Belongs to the head's thread, into which `note` brings what the draft's answers
    do, and `cost` the times of its runs. `degraded` says why the draft model makes no predictions; empty while it does.
    """

    def __init__(
        self,
        draft: Proposer,
        scheduler: Scheduler,
        note: Callable[[Callable[[], None]], None],
        patience: Patience | None = None,
        cost: StepCost | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._thread = DraftThread(draft, lambda *done: note(lambda: self._take(*done)))
        self._times, self._cost = StepTimes(), cost
        self._transit = Transit(patience or Patience(floor=3.0, first=30.0), scheduler.counts.draft_seconds)
        self._asked = self._answered = 0
        self._backoff = BACKOFF[0]
        self._settled_at = 0.0
        self._restore_at: float | None = None
        self.degraded = ""

    def begin(self, slots: int) -> None:
        """A new epoch of the pipeline, in which the scheduler gives the draft model everything again."""
        self._thread.reset(slots)

    def work(self) -> None:
        """Ask for predictions, if any are wanted."""
        if (run := self._scheduler.compose_draft()) is not None:
            self._thread.propose(run)
            self._transit.sent(self._asked, run.batch.num_rows, time.monotonic())
            self._asked += 1

    def tick(self, now: float) -> None:
        """Give up waiting for a slow draft model, or take one back. To be called about every second."""
        if (seconds := self._transit.overdue(now)) and not self.degraded:
            self._lose(f"the draft model has not answered for {seconds:.0f} s")
        if self._restore_at is not None and now >= self._restore_at and self._scheduler.epoch is not None:
            self._restore_at, self._settled_at = None, now + SETTLED
            self._thread.reset(self._scheduler.num_slots)
            self._scheduler.restore_draft()
            self.degraded = ""
            _log.info("draft restored", extra=fields(epoch=self._scheduler.epoch))

    def close(self) -> None:
        """End the draft model's thread, after the run in progress."""
        self._thread.close()

    def _take(self, batch: Batch, outcome: Outcome, seconds: float) -> None:
        now = time.monotonic()
        self._transit.answered(self._answered, now)
        self._answered += 1
        if isinstance(outcome, Exception):
            if now > self._settled_at:
                self._backoff = BACKOFF[0]
            self._restore_at = now + self._backoff
            self._backoff = min(2 * self._backoff, BACKOFF[1])
            self._lose(f"the draft model failed: {outcome}", outcome)
        elif self.degraded and self._restore_at is None:  # late, and so of no use; but it is there
            self._restore_at = now
        else:
            self._learn(batch, seconds)
            self._scheduler.on_proposals(batch.epoch, outcome)

    def _learn(self, batch: Batch, seconds: float) -> None:
        """Rows of a prompt take less time than others: they are not ranked."""
        if self._cost is not None and not batch.num_prefill:
            self._times.add(batch.num_rows, seconds)
            self._cost.observe(0, self._times.snapshot())

    def _lose(self, reason: str, error: Exception | None = None) -> None:
        _log.error(
            "draft degraded: decoding goes on without the draft model",
            extra=fields(epoch=self._scheduler.epoch, reason=reason),
            exc_info=error,
        )
        self._scheduler.lose_draft()
        self._scheduler.counts.draft_failures += 1
        self.degraded = reason
