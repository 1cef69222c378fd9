"""A row's numbers are the same, to the last bit, whatever else is computed with it."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from pipedec.model.execution import Execution
from pipedec.model.executor import SpanExecutor
from pipedec.model.invariant_attention import BLOCK
from pipedec.model.loader import SpanModel
from pipedec.model.packed import packable_dtypes
from pipedec.wire.messages import NO_PARENT, Batch, Close, Commit, Op, Open, Prefill, Row, Rows
from tests.model.pipeline import GREEDY
from tests.tiny import tiny_model

PROMPT = tuple(int(token) for token in np.random.default_rng(5).integers(0, 256, 2 * BLOCK - 20))
ANSWER = tuple(int(token) for token in np.random.default_rng(6).integers(0, 256, 40))  # into the third block
NUM_SLOTS = 1024
DTYPES = sorted(packable_dtypes(), key=str)

pytestmark = pytest.mark.skipif(not DTYPES, reason="this build of PyTorch has no oneDNN")


@pytest.fixture(scope="module", params=["llama", "mistral"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wide enough that products of one row are summed in another order where the processor has one for them."""
    window = {"sliding_window": 150} if request.param == "mistral" else {}
    folder = tmp_path_factory.mktemp("model")
    return tiny_model(folder, request.param, hidden=768, heads=6, layers=2, spread=0.05, **window)  # type: ignore[arg-type]


class Told:
    """An executor, slots in no order, and the hidden states and logits of each position of the request 1."""

    def __init__(self, model: Path, dtype: torch.dtype) -> None:
        span = SpanModel.load(model, (0, 2), dtype=dtype)
        self.executor = SpanExecutor(span, NUM_SLOTS, Execution("invariant"))
        self.slots = list(range(NUM_SLOTS))
        random.Random(7).shuffle(self.slots)
        self.numbers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def run(self, ops: list[Op], rows: list[Row], told: dict[int, int]) -> None:
        """`told`: which activation row has which position."""
        hidden = self.executor.execute(Batch(0, 0, tuple(ops), Rows.of(rows)), None)
        assert hidden is not None
        logits = self.executor.head(hidden)
        self.numbers |= {position: (hidden[row], logits[row]) for row, position in told.items()}

    def prefill(self, tokens: tuple[int, ...], chunk: int, request: int = 1) -> None:
        for start in range(0, len(tokens), chunk):
            part = tokens[start : start + chunk]
            slots = tuple(self.slots.pop() for _ in part)
            ops: list[Op] = [Open(request, GREEDY, len(tokens))] if start == 0 else []
            told = {i: start + i for i in range(len(part))} if request == 1 else {}
            self.run([*ops, Prefill(request, start, part, slots)], [], told)

    def alone(self) -> None:
        """The answer's tokens, one a step."""
        before: tuple[int, ...] = ()
        for i, token in enumerate(ANSWER):
            ops: list[Op] = [Commit(1, before)] if before else []
            row = Row(1, i, NO_PARENT, token, len(PROMPT) + i, self.slots.pop(), ())
            self.run(ops, [row], {0: row.position})
            before = (row.slot,)

    def in_trees(self, beside: int) -> None:
        """The answer's tokens as a path in trees, among nodes that come to nothing, ten levels before each commit."""
        rng, number, path = random.Random(beside), 0, list[Row]()
        for start in range(0, len(ANSWER), 10):
            ops: list[Op] = [Commit(1, tuple(row.slot for row in path))] if path else []
            path, dead = [], list[Row]()
            for i in range(start, start + 10):
                level = []
                for _ in range(beside):
                    parent = rng.choice([*dead, *path, None])
                    level.append(self._row(number, parent, rng.randrange(256), start))
                    number += 1
                path.append(self._row(number, path[-1] if path else None, ANSWER[i], start))
                number += 1
                level.insert(rng.randrange(len(level) + 1), path[-1])
                self.run(ops, level, {level.index(path[-1]): len(PROMPT) + i})
                ops, dead = [], dead + [row for row in level if row is not path[-1]]
            self.slots[:0] = [row.slot for row in dead]

    def _row(self, number: int, parent: Row | None, token: int, start: int) -> Row:
        above = (*parent.ancestors, parent.slot) if parent else ()
        position = len(PROMPT) + start + len(above)
        return Row(1, number, parent.node if parent else NO_PARENT, token, position, self.slots.pop(), above)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neither_chunks_nor_trees_nor_neighbours_change_a_bit(model: Path, dtype: torch.dtype) -> None:
    plain = Told(model, dtype)
    plain.prefill(PROMPT, 64)
    plain.alone()
    whole = Told(model, dtype)
    whole.prefill(PROMPT + ANSWER, NUM_SLOTS)
    few, many = Told(model, dtype), Told(model, dtype)
    few.prefill(PROMPT, 1)
    few.in_trees(2)
    many.prefill(ANSWER, 7, request=2)
    many.prefill(PROMPT, 33)
    many.run([Close(2)], [], {})
    many.in_trees(30)
    assert len(plain.numbers) == len(PROMPT + ANSWER)
    for other in (whole, few, many):
        assert other.numbers.keys() == plain.numbers.keys()
        for position, (hidden, logits) in plain.numbers.items():
            assert torch.equal(other.numbers[position][0], hidden), position
            assert torch.equal(other.numbers[position][1], logits), position


def test_a_tree_of_more_keys_than_one_sum_takes_is_computed_in_parts(model: Path) -> None:
    """300 nodes of one level see 300 keys in the block of positions where they are."""
    numbers = []
    for count in (1, 300):
        told = Told(model, DTYPES[-1])
        told.prefill(PROMPT, 64)
        rows = [Row(1, i, NO_PARENT, i % 256, len(PROMPT), told.slots.pop(), ()) for i in range(count)]
        told.run([], rows, {0: len(PROMPT)})
        numbers.append(told.numbers[len(PROMPT)][0])
    assert torch.equal(*numbers)


def test_it_is_attention(model: Path) -> None:
    """To rounding, what torch's own operator says."""
    span = SpanModel.load(model, (0, 2), dtype=torch.float32)
    rows = [Row(1, i, NO_PARENT, i, 40, 200 + i, ()) for i in range(9)]
    ops = (Open(1, GREEDY, 40), Prefill(1, 0, PROMPT[:40], tuple(range(100, 140))))
    said = []
    for attention in ("invariant", "sdpa"):
        executor = SpanExecutor(span, NUM_SLOTS, Execution(attention))  # type: ignore[arg-type]
        said.append(executor.execute(Batch(0, 0, ops, Rows.of(rows)), None))
    assert said[0] is not None
    assert said[1] is not None
    torch.testing.assert_close(said[0], said[1], atol=1e-4, rtol=1e-4)
