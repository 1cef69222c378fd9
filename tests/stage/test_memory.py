"""A step for which there is not enough memory: really asked of torch, really refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipedec.model.executor import SpanExecutor
from pipedec.model.loader import SpanModel
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import NO_PARENT, Batch, Open, Prefill, Row, Rows
from stage_service.worker import StageWorker
from tests.tiny import tiny_model

PROMPT = (72, 101, 108)
BATCH = Batch(
    1,
    0,
    (Open(1, SamplingParams(), len(PROMPT) + 1), Prefill(1, 0, PROMPT, (0, 1, 2))),
    Rows.of([Row(1, 0, NO_PARENT, 108, 3, 3, ())]),
)


def test_the_worker_says_so_and_goes_on_after_a_reset(tmp_path: Path) -> None:
    model = SpanModel.load(tiny_model(tmp_path), (0, 4), dtype=torch.float32, first=True, last=True)
    worker = StageWorker(SpanExecutor(model, 16), is_last=True)
    whole = worker.step(BATCH, None)
    worker.reset(2, 16)

    def want_too_much(done: float) -> None:
        if done > 0:
            torch.empty(1 << 55)

    with pytest.raises(MemoryError, match="can't allocate memory"):
        worker.step(BATCH, None, want_too_much)
    worker.reset(3, 16)
    assert worker.step(BATCH, None) == whole


def test_what_is_not_about_memory_passes(tmp_path: Path) -> None:
    model = SpanModel.load(tiny_model(tmp_path), (0, 4), dtype=torch.float32, first=True, last=True)
    worker = StageWorker(SpanExecutor(model, 16), is_last=True)

    def fail(done: float) -> None:
        raise RuntimeError("a kernel failed")

    with pytest.raises(RuntimeError, match="a kernel failed"):
        worker.step(BATCH, None, fail)
