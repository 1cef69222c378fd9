"""Attention that reads a table gives what the plain one gives, over random requests, trees and slots."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from pipedec.model.attention import Attention
from pipedec.model.context import Context
from pipedec.model.kv_pool import KVPool
from pipedec.model.sdpa_attention import SdpaAttention
from pipedec.model.table import MIN_PIECE, Column, Layout, TableMaker, needed, room
from pipedec.model.table_attention import Bound, Compute, DenseCompute, TableAttention
from pipedec.model.triton_attention import TritonCompute

SLOTS = 1024
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TOLERANCE = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Heads:
    query: int
    kv: int
    dim: int


def random_contexts(seed: int, committed: list[int], rows: list[int], prefilled: list[int]) -> list[Context]:
    """One context a request: committed slots, of which the newest are prefilled in this batch, and a random tree of
    rows below them. Activation rows of the requests are mixed, slots lie anywhere."""
    rng = np.random.default_rng(seed)
    slots = iter(rng.permutation(SLOTS).tolist())
    total = sum(rows) + sum(prefilled)
    order = iter(rng.permutation(total).tolist())
    return [
        _context(rng, owner + 1, np.array([next(slots) for _ in range(n)], np.int64), tree, chunk, slots, order)
        for owner, (n, tree, chunk) in enumerate(zip(committed, rows, prefilled, strict=True))
    ]


def _context(rng, owner, committed, tree, chunk, slots, order):  # type: ignore[no-untyped-def]
    own = [next(slots) for _ in range(tree)]
    parents = [int(rng.integers(-1, node)) for node in range(tree)]
    ancestors: list[list[int]] = []
    for node, parent in enumerate(parents):
        ancestors.append([node] if parent < 0 else [*ancestors[parent], node])
    extra = np.sort(np.array(own, np.int64))
    visible = np.zeros((chunk + tree, tree), np.bool_)
    for node, path in enumerate(ancestors):
        visible[chunk + node, np.searchsorted(extra, [own[i] for i in path])] = True
    start = len(committed) - chunk
    rows = np.array(sorted(next(order) for _ in range(chunk + tree)), np.int64)
    return Context(
        owner=owner,
        rows=rows,
        positions=np.array(
            [*range(start, len(committed)), *(len(committed) + len(path) - 1 for path in ancestors)], np.int64
        ),
        slots=np.concatenate([committed[start:], np.array(own, np.int64)]),
        committed=committed,
        prefix=np.array([*range(start + 1, len(committed) + 1), *[len(committed)] * tree], np.int64),
        extra=extra,
        visible=visible,
    )


def _prefill(context: Context) -> Context:
    steps = np.arange(len(context.committed))
    none = np.zeros((len(steps), 0), np.bool_)
    return Context(
        context.owner, steps, steps, context.committed, context.committed, steps + 1, context.extra[:0], none
    )


def attend(
    attention: Attention,
    pool: KVPool,
    contexts: list[Context],
    heads: Heads,
    window: int | None = None,
) -> torch.Tensor:
    """One layer over rows whose query, key and value are random numbers, the same for every attention."""
    generator = torch.Generator().manual_seed(7)
    old = torch.randn(2, heads.kv, SLOTS, heads.dim, generator=generator)
    count = sum(len(context.rows) for context in contexts)
    query = torch.randn(heads.query, count, heads.dim, generator=generator)
    new = torch.randn(2, heads.kv, count, heads.dim, generator=generator)
    read = np.unique(np.concatenate([np.concatenate([c.committed, c.extra]) for c in contexts]))
    for part, numbers in ((pool.keys, old[0]), (pool.values, old[1])):
        part.fill_(torch.nan)  # whoever looks beyond its own slots will show it
        part[0, :, read] = numbers[:, read].to(part)
    for context in contexts:  # the committed tokens come first, as they do in life
        attention.begin([_prefill(context)], np.arange(len(context.committed)))
    attention.begin(contexts, np.arange(count))
    keys, values, query = (numbers.to(pool.keys) for numbers in (new[0], new[1], query))
    attention.store(0, keys, values)
    return attention.attend(0, query, heads.dim**-0.5, window)


def make_pool(heads: Heads, dtype: torch.dtype, scratch: int = 0) -> KVPool:
    return KVPool(1, SLOTS + scratch, heads.kv, heads.dim, dtype, DEVICE)


def both(
    compute: Compute, contexts: list[Context], heads: Heads, dtype: torch.dtype, window: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the compute gives, and what the plain attention gives in float32."""
    pool = make_pool(heads, dtype, scratch=1)
    actual = attend(TableAttention(pool, SLOTS, compute), pool, contexts, heads, window)
    plain = make_pool(heads, torch.float32)
    return actual, attend(SdpaAttention(plain), plain, contexts, heads, window)


def make_compute(kind: str, heads: Heads, dtype: torch.dtype) -> Compute:
    return DenseCompute() if kind == "dense" else TritonCompute(heads.kv, heads.query, heads.dim, dtype, DEVICE)


LOADS = {
    "one row": ([70], [1], [0]),
    "a tree": ([40], [11], [0]),
    "a long context in pieces": ([MIN_PIECE + 45], [3], [0]),
    "the first token": ([1], [0], [1]),
    "prefill alone": ([37], [0], [12]),
    "requests of every kind": ([3, MIN_PIECE, 20, 33], [1, 4, 0, 2], [0, 0, 5, 3]),
}


def test_many_rows_are_looked_at_together_where_memory_allows() -> None:
    heads = Heads(16, 2, 32)
    compute = TritonCompute(heads.kv, heads.query, heads.dim, torch.float16, DEVICE)
    assert compute.tile(40) * heads.query // heads.kv > 64
    contexts = random_contexts(3, [MIN_PIECE + 20, 30], [37, 3], [0, 0])
    actual, expected = both(compute, contexts, heads, torch.float16)
    torch.testing.assert_close(actual.float(), expected, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("kind", ["dense", "triton"])
def test_equal_to_plain_attention(kind: str, load: str) -> None:
    heads = Heads(4, 2, 16)
    contexts = random_contexts(1, *LOADS[load])
    actual, expected = both(make_compute(kind, heads, torch.float32), contexts, heads, torch.float32)
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[torch.float32], rtol=0)


@pytest.mark.parametrize("heads", [Heads(1, 1, 16), Heads(3, 1, 16), Heads(8, 1, 32), Heads(4, 1, 24)], ids=str)
@pytest.mark.parametrize("kind", ["dense", "triton"])
def test_any_number_of_query_heads_per_kv_head(kind: str, heads: Heads) -> None:
    contexts = random_contexts(2, [40, 140], [2, 3], [0, 0])
    actual, expected = both(make_compute(kind, heads, torch.float32), contexts, heads, torch.float32)
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[torch.float32], rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["dense", "triton"])
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    heads = Heads(4, 2, 16)
    contexts = random_contexts(3, [70, 20], [3, 1], [0, 3])
    actual, expected = both(make_compute(kind, heads, dtype), contexts, heads, dtype)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, atol=TOLERANCE[dtype], rtol=0)


@pytest.mark.parametrize("window", [1, 30])
@pytest.mark.parametrize("kind", ["dense", "triton"])
def test_sliding_windows(kind: str, window: int) -> None:
    heads = Heads(4, 2, 16)
    contexts = random_contexts(4, [140, 30], [4, 0], [0, 6])
    actual, expected = both(make_compute(kind, heads, torch.float32), contexts, heads, torch.float32, window)
    torch.testing.assert_close(actual, expected, atol=TOLERANCE[torch.float32], rtol=0)


@pytest.mark.parametrize("kind", ["dense", "triton"])
def test_padding_changes_no_bit_and_is_finite(kind: str) -> None:
    """A table of more rows, items and keys than the batch has; what is behind its end is rubbish."""
    heads, contexts = Heads(4, 2, 16), random_contexts(5, [80, 9], [2, 1], [0, 0])
    pool = make_pool(heads, torch.float32, scratch=1)
    attention = TableAttention(pool, SLOTS, make_compute(kind, heads, torch.float32))
    expected = attend(attention, pool, contexts, heads)
    query = torch.randn(4, 3, 16, generator=torch.Generator().manual_seed(8)).to(DEVICE)
    expected = attention.attend(0, query, 0.25, None)
    layout = attention.layout(8, *(number + 50 for number in needed(contexts)))
    table = torch.full((layout.size,), 10**6, dtype=torch.int32, device=DEVICE)
    made = torch.from_numpy(attention.maker.make(layout, contexts, np.arange(3), None)).to(DEVICE)
    table[: len(made)] = made
    attention.bind(Bound(layout, table))
    padded = torch.cat([query, torch.full((4, 5, 16), torch.nan, device=DEVICE)], 1)
    actual = attention.attend(0, padded, 0.25, None)
    torch.testing.assert_close(actual[:3], expected, atol=TOLERANCE[torch.float32], rtol=0)
    assert torch.isfinite(actual).all()
    assert attention.bound is not None
    assert (attention.bound.slots()[3:] == SLOTS).all()


def test_equal_tables_give_equal_bits() -> None:
    heads = Heads(4, 2, 16)
    contexts = random_contexts(6, [140, 20], [3, 2], [0, 0])
    compute = make_compute("triton", heads, torch.bfloat16)
    first, _ = both(compute, contexts, heads, torch.bfloat16)
    again, _ = both(compute, contexts, heads, torch.bfloat16)
    assert torch.equal(first, again)


@pytest.mark.parametrize("others", [0, 11, 15, 31])
@pytest.mark.parametrize("length", [300, 8192, 32768])
def test_a_long_context_is_cut_whatever_is_beside_it(length: int, others: int) -> None:
    """No program reads much more than its share of all that 16 read together."""
    spread, lengths, start = 16, [length] + [256] * others, 0
    contexts = []
    for row, count in enumerate(lengths):
        slots, own = np.arange(start, start + count), np.array([start + count])
        one = np.array([count])
        contexts.append(Context(row, np.array([row]), one, own, slots, one, own, np.ones((1, 1), np.bool_)))
        start += count + 1
    rows = len(lengths)
    layout = Layout(rows, spread, spread, room(rows, spread), *needed(contexts))
    table = TableMaker(start, start - 1).make(layout, contexts, np.arange(rows), None)
    begin, end = table[layout.items_at : layout.keys_at].reshape(layout.items, -1)[:, :2].T
    share = max(MIN_PIECE, start / spread)
    assert (end - begin).max() <= 1.7 * share
    assert (end - begin).sum() == start


@pytest.mark.parametrize("seed", range(6))
def test_items_cover_every_key_of_every_row_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    load = rng.integers(1, 120, 5), rng.integers(0, 40, 5), rng.integers(0, 2, 5)
    contexts = random_contexts(seed, *(part.tolist() for part in load))
    count = sum(len(context.rows) for context in contexts)
    attention = TableAttention(
        make_pool(Heads(8, 2, 16), torch.float32, 1), SLOTS, TritonCompute(2, 8, 16, torch.float16, DEVICE)
    )
    layout = attention.layout(count, *needed(contexts))
    table = TableMaker(SLOTS, SLOTS).make(layout, contexts, np.arange(count), None)
    columns = table[: layout.items_at].reshape(len(Column), count)
    items = table[layout.items_at : layout.keys_at].reshape(layout.items, -1)
    for context in contexts:
        for i, row in enumerate(context.rows):
            first, number = columns[Column.ITEM, row], columns[Column.NUM_ITEMS, row]
            mine = items[first : first + number]
            assert (mine[:, 3 + columns[Column.LANE, row]] == row).all()
            read = np.concatenate([table[begin:end] for begin, end in mine[:, :2]])
            assert len(set(read.tolist())) == len(read)
            assert set(read.tolist()) >= {*context.committed[: context.prefix[i]], *context.extra[context.visible[i]]}
