"""`python -m benchmarks.wallclock.stage`: the stage service, held to the time of an emulated device."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch

from benchmarks.replay import ReplayStage
from benchmarks.simulation import Stage
from benchmarks.wallclock.scene import Scene, hold
from pipedec.wire.codec import Activation
from pipedec.wire.messages import Batch, Cancel
from stage_service.__main__ import main
from stage_service.assembly import LoadedStage
from stage_service.worker import Progress, StageResult, StageWorker

SLICES = 8  # of a step, between which a real stage would hear of cancellations


class HeldStage:
    """A stage that passes a result on when the emulated device's time for its rows is over, not before.

    A batch of which every row is cancelled while it is held is let go at once, as a real one between two layers.
    """

    def __init__(self, inner: Stage, seconds: Callable[[int], float]) -> None:
        self._inner, self._seconds = inner, seconds
        self._cancelled: set[tuple[int, int]] = set()

    def reset(self, epoch: int, num_slots: int) -> None:
        self._cancelled.clear()
        self._inner.reset(epoch, num_slots)

    def cancel(self, cancel: Cancel) -> None:
        self._cancelled.update(cancel.nodes)
        self._inner.cancel(cancel)

    def step(self, batch: Batch, activation: Activation | None, progress: Progress | None = None) -> StageResult:
        start, listen = time.monotonic(), progress or (lambda done: None)
        result = self._inner.step(batch, activation)
        nodes = set(zip(batch.rows.request.tolist(), batch.rows.node.tolist(), strict=True))
        self._cancelled.clear()  # what was known before has been left out by the inner stage

        def go_on(done: float) -> bool:
            listen(done)
            return bool(batch.num_prefill) or not self._cancelled >= nodes

        if not result.rows or hold(start, self._seconds(result.rows), SLICES, go_on):
            return result
        empty = Activation(b"", 0, np.zeros(0, np.int32))
        return result if result.activation is None else StageResult(0, empty)


class Weightless:
    """A recorded stage whose activations have the bytes that a real one's have."""

    def __init__(self, inner: Stage, row_bytes: int) -> None:
        self._inner, self._row_bytes = inner, row_bytes
        self.reset, self.cancel = inner.reset, inner.cancel

    def step(self, batch: Batch, activation: Activation | None) -> StageResult:
        result = self._inner.step(batch, activation)
        if (found := result.activation) is None:
            return result
        return replace(result, activation=replace(found, data=bytes(found.rows * self._row_bytes)))


def held(stage: LoadedStage) -> LoadedStage:
    """The stage as the scene wants it."""
    scene, offer = Scene.from_environment(), stage.offer
    assert isinstance(stage.worker, StageWorker), "what was loaded has not been adapted yet"
    inner: Stage = stage.worker
    if not scene.compute:
        recorded = ReplayStage(scene.served(), scene.vocab_size, is_last=offer.stage == offer.stages - 1)
        inner = Weightless(recorded, offer.width * getattr(torch, offer.dtype).itemsize)
    return replace(stage, worker=HeldStage(inner, scene.device.stage_seconds))


if __name__ == "__main__":
    sys.exit(main(held))
