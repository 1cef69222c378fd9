"""A step, or a run of the draft, ends when the device is done: its time is what the policy reckons with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.local import build_drafter, build_stages
from pipedec.model.executor import SpanExecutor
from pipedec.model.staging import DirectStaging
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import Batch, Op, Open, Prefill
from stage_service.worker import StageWorker
from tests.tiny import tiny_model

PROMPT: tuple[Op, ...] = (Open(1, SamplingParams(), 9), Prefill(1, 0, (72, 101, 108), (0, 1, 2)))


class Queued(DirectStaging):
    """Notes what is waited for, as a device has it that computes behind the caller's back."""

    def __init__(self, executor: SpanExecutor) -> None:
        super().__init__(torch.device("cpu"))
        self.busy, self._run = False, executor._layers
        executor.staging, executor._layers = self, self._queue  # type: ignore[assignment]

    def _queue(self, *arguments: object, goes_on: Callable[[int], bool] | None = None) -> object:
        self.busy = True
        return self._run(*arguments, goes_on=goes_on)  # type: ignore[arg-type]

    def wait(self) -> None:
        self.busy = False

    def download(self, *tensors: torch.Tensor) -> list[torch.Tensor]:
        self.busy = False
        return super().download(*tensors)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.mark.parametrize("stages", [1, 2])
def test_a_step_that_decides_nothing_is_waited_for(model: Path, stages: int) -> None:
    activation = None
    for worker in build_stages(model, stages, 16):
        assert isinstance(worker, StageWorker)
        staging = Queued(worker._executor)
        result = worker.step(Batch(1, 0, PROMPT), activation)
        assert not staging.busy
        activation = result.activation
    assert result.verdict is not None
    assert not result.verdict.decisions


def test_a_run_of_the_draft_without_proposals_is_waited_for(model: Path) -> None:
    drafter = build_drafter(model, 16)
    staging = Queued(drafter._executor)
    assert not len(drafter.propose(Batch(1, 0, PROMPT)))
    assert not staging.busy


def test_the_next_batch_is_asked_for_when_three_quarters_are_computed(model: Path) -> None:
    (worker,) = build_stages(model, 1, 16)
    assert isinstance(worker, StageWorker)
    staging = Queued(worker._executor)
    asked: dict[float, bool] = {}
    worker.step(Batch(1, 0, PROMPT), None, lambda done: asked.setdefault(done, staging.busy) and None)
    assert asked == {0.0: True, 0.25: True, 0.5: True, 0.75: False}
