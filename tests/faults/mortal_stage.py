"""`python -m tests.faults.mortal_stage`: a stage that some requests kill, and that is soon there again.

What takes long, importing torch, is done once; the stage itself is a fork of that process, and when it is killed, the
next one. Every death is told in the file that `DEATHS` names, a byte each, before it happens.
"""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from pipedec.wire.codec import Activation
from pipedec.wire.messages import Batch, Cancel, Prefill, Reuse
from stage_service.__main__ import main
from stage_service.assembly import LoadedStage
from stage_service.worker import Progress, StageResult, StageWorker

KILLS_AT_ONCE, KILLS_LATER = 318, 319  # as the first token of a prompt
LATER = 12  # the position that the latter dies at
DEATHS = "MORTAL_STAGE_DEATHS"


def die() -> NoReturn:
    with Path(os.environ[DEATHS]).open("ab") as file:
        file.write(b"x")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("nobody outlives SIGKILL")


class Mortal:
    """A worker that some requests kill."""

    def __init__(self, worker: StageWorker) -> None:
        self._worker = worker
        self._marked: set[int] = set()

    def reset(self, epoch: int, num_slots: int) -> None:
        self._marked.clear()
        self._worker.reset(epoch, num_slots)

    def cancel(self, cancel: Cancel) -> None:
        self._worker.cancel(cancel)

    def step(self, batch: Batch, activation: Activation | None, progress: Progress | None = None) -> StageResult:
        positions = list(zip(batch.rows.request.tolist(), batch.rows.position.tolist(), strict=True))
        for op in batch.ops:
            if isinstance(op, Prefill):
                positions.append((op.request, op.start + len(op.tokens) - 1))
            if isinstance(op, Prefill | Reuse) and op.start == 0:
                if op.tokens[0] == KILLS_AT_ONCE:
                    die()
                if op.tokens[0] == KILLS_LATER:
                    self._marked.add(op.request)
        if any(request in self._marked and position >= LATER for request, position in positions):
            die()
        return self._worker.step(batch, activation, progress)


def mortal(stage: LoadedStage) -> LoadedStage:
    return replace(stage, worker=Mortal(stage.worker))  # type: ignore[arg-type]  # it does what the loop needs


def run() -> None:
    while True:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # not its parent's: that is for another child
            sys.exit(main(mortal))
        signal.signal(signal.SIGTERM, lambda *_, child=child: os.kill(child, signal.SIGTERM))
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    run()
