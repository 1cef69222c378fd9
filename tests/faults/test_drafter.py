"""A draft model whose logits are not numbers: predictions are left out where they are spoilt, and it counts as failed
where all are."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.local import build_drafter
from draft_service.draft.drafter import Drafter
from pipedec.errors import ModelError
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import NO_PARENT, Batch, Open, Prefill, Row, Rows
from tests.tiny import tiny_model

BATCH = Batch(
    1,
    0,
    (Open(1, SamplingParams(), 2), Prefill(1, 0, (72,), (0,))),
    Rows.of([Row(1, 0, NO_PARENT, 101, 1, 1, ()), Row(1, 1, 0, 108, 2, 2, (1,))]),
)


def drafter(folder: Path, spoilt: tuple[int, ...]) -> Drafter:
    def spoil(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(0, torch.tensor(spoilt, dtype=torch.int64), float("nan"))

    return build_drafter(tiny_model(folder), 16, children=3, adjust=spoil)


def test_a_spoilt_node_has_no_children_and_the_others_have_theirs(tmp_path: Path) -> None:
    assert [len(children) for children in drafter(tmp_path, (0,)).propose(BATCH)] == [0, 3]


def test_logits_that_are_all_spoilt_are_a_failure(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="not numbers"):
        drafter(tmp_path, (0, 1)).propose(BATCH)
