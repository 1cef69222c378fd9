"""The draft model in a thread of its own, so that its runs overlap with whatever else the head does."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from draft_service.draft.drafter import Proposer
from draft_service.schedule.draft_batches import DraftRun
from pipedec.proposals import Proposals
from pipedec.wire.messages import Batch

CLOSE_SECONDS = 10.0

Outcome = Proposals | Exception
Done = Callable[[Batch, Outcome, float], None]  # (batch, proposals or what went wrong, seconds), in that thread


class DraftThread:
    """Runs one thing after the other, in the order given: the model's KV depends on it."""

    def __init__(self, draft: Proposer, done: Done) -> None:
        self._draft = draft
        self._done = done
        self._broken: Exception | None = None  # what the latest reset raised
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="draft", daemon=True)
        self._thread.start()

    def reset(self, num_slots: int) -> None:
        """Forget all requests before the next batch, whose outcome it is when this fails."""
        self._queue.put(lambda: self._reset(num_slots))

    def propose(self, run: DraftRun) -> None:
        """Evaluate a batch; `done` gets the outcome."""
        self._queue.put(lambda: self._propose(run))

    def close(self) -> None:
        """End the thread, after the run in progress; one that hangs ends with the process."""
        self._queue.put(None)
        self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            job()

    def _reset(self, num_slots: int) -> None:
        self._broken = None
        try:
            self._draft.reset(num_slots)
        except Exception as error:  # told with the next batch: whoever resets does not wait
            self._broken = error

    def _propose(self, run: DraftRun) -> None:
        start = time.perf_counter()
        try:
            outcome: Outcome = self._broken or self._draft.propose(*run)
        except Exception as error:  # whatever it is, decoding goes on without speculation; the head says so
            outcome = error
        self._done(run.batch, outcome, time.perf_counter() - start)
