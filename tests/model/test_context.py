"""What rows attend to, for many requests at once as for each alone."""

from __future__ import annotations

import random

import numpy as np
import pytest

from pipedec.model.context import Context, Contexts, Limits
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import Batch, Commit, Open, Row, Rows

LIMITS = Limits(slots=512, vocabulary=16, positions=64)
COMMITTED = 3


def tree_rows(rng: random.Random, request: int, slots: list[int]) -> list[Row]:
    """A random tree below three committed tokens."""
    rows: list[Row] = []
    for node in range(rng.randint(1, 6)):
        parent = rng.choice([None, *rows])
        above = () if parent is None else (parent.slot, *parent.ancestors)
        rows.append(Row(request, node, -1, 1, COMMITTED + len(above), slots.pop(), above))
    return rows


def contexts_of(batch: Batch, alive: np.ndarray) -> dict[int, Context]:
    """By the first committed slot, which differs from request to request."""
    return {int(each.committed[0]): each for each in Contexts(LIMITS).apply(batch, alive)}


@pytest.mark.parametrize("seed", range(20))
def test_each_request_sees_what_it_would_see_alone(seed: int) -> None:
    rng = random.Random(seed)
    slots = rng.sample(range(512), 256)
    requests = rng.sample(range(100), rng.randint(2, 6))
    ops = {r: (Open(r, SamplingParams(), 3), Commit(r, tuple(slots.pop() for _ in range(COMMITTED)))) for r in requests}
    rows = [row for request in requests for row in tree_rows(rng, request, slots)]
    rng.shuffle(rows)
    alive = np.array([rng.random() < 0.8 for _ in rows])
    together = contexts_of(Batch(1, 0, sum(ops.values(), ()), Rows.of(rows)), alive)
    present = {row.request for row, lives in zip(rows, alive, strict=True) if lives}
    assert len(together) == len(present)
    for request in present:
        mine = np.array([row.request == request for row in rows])
        own = Rows.of([row for row in rows if row.request == request])
        (alone,) = contexts_of(Batch(1, 0, ops[request], own), alive[mine]).values()
        found = together[int(alone.committed[0])]
        assert found.rows.tolist() == np.flatnonzero(mine)[alone.rows].tolist()
        for name in ("positions", "slots", "committed", "prefix", "extra", "visible"):
            assert np.array_equal(getattr(found, name), getattr(alone, name)), name
