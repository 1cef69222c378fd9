"""A draft model whose logits are not numbers: predictions are left out where they are spoilt, and it counts as failed
where all of several requests are."""

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


def batch(request: int) -> Batch:
    """Two nodes of one more request."""
    slot = 3 * request
    return Batch(
        1,
        request,
        (Open(request, SamplingParams(), 2), Prefill(request, 0, (72,), (slot,))),
        Rows.of([Row(request, 0, NO_PARENT, 101, 1, slot + 1, ()), Row(request, 1, 0, 108, 2, slot + 2, (slot + 1,))]),
    )


def drafter(folder: Path, spoilt: dict[int, tuple[int, ...]]) -> Drafter:
    """Some rows of some requests' batches are spoilt."""

    def spoil(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        rows = torch.tensor(spoilt.get(batch.step, ()), dtype=torch.int64)
        return logits.index_fill(0, rows, float("nan"))

    return build_drafter(tiny_model(folder), 16, children=3, adjust=spoil)


def sizes(drafter: Drafter, request: int) -> list[int]:
    return [len(children) for children in drafter.propose(batch(request))]


def test_a_spoilt_node_has_no_children_and_the_others_have_theirs(tmp_path: Path) -> None:
    assert sizes(drafter(tmp_path, {1: (0,)}), 1) == [0, 3]


def test_one_request_that_is_all_spoilt_costs_others_nothing(tmp_path: Path) -> None:
    """Its text overflows; it does so again and again."""
    spoiling = drafter(tmp_path, {1: (0, 1), 3: (0, 1)})
    assert [sizes(spoiling, request) for request in (1, 2, 3)] == [[0, 0], [3, 3], [0, 0]]


def test_two_requests_that_are_all_spoilt_are_a_failure(tmp_path: Path) -> None:
    spoiling = drafter(tmp_path, {1: (0, 1), 2: (0, 1)})
    assert sizes(spoiling, 1) == [0, 0]
    with pytest.raises(ModelError, match="not numbers"):
        spoiling.propose(batch(2))


def test_after_a_reset_nothing_is_held_against_it(tmp_path: Path) -> None:
    spoiling = drafter(tmp_path, {1: (0, 1), 2: (0, 1)})
    assert sizes(spoiling, 1) == [0, 0]
    spoiling.reset(16)
    assert sizes(spoiling, 2) == [0, 0]
