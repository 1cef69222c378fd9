"""Attention over the KV pool in two Triton kernels, which read all that varies from a table on the device.

The first runs a program for each item of the table and each KV head: all query heads of that KV head, for all rows of
a tile, against one piece of the context, so that K and V are read once for them all. The second puts the pieces of
each row together. Sums are kept in float32 and taken in a fixed order: equal tables give equal bits.

With TRITON_INTERPRET=1 in the environment when this is imported, the kernels run on the CPU, slowly.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pipedec.model.kv_pool import KVPool
from pipedec.model.table import HIDDEN, ITEM_HEAD, Column
from pipedec.model.table_attention import Bound, like_output
from pipedec.model.triton_device import processors, shared_memory, upcast
from pipedec.model.triton_store import store_in_pool

_MIN_QUERIES = 16  # of a program, for tl.dot
_MAX_QUERIES = {2: 64, 4: 16}  # by bytes of a number: what registers of four warps hold
_MANY_QUERIES = 128  # of eight warps, where shared memory holds deep pipelines; contexts are then read half as often
_MAX_KEYS, _MIN_KEYS = {2: 64, 4: 32}, 16  # that a program looks at together
_BUNDLED_ROWS = 8  # from which on a program joins the pieces of all query heads of a KV head
_VARYING = ("rows_stride", "items_at", "items", "kv_heads", "window")  # no value of these is worth a compilation
_LOG2_E = 1.4426950408889634

_POSITION, _FIRST = tl.constexpr(int(Column.POSITION)), tl.constexpr(int(Column.FIRST))
_COMMITTED_END, _EXTRA = tl.constexpr(int(Column.COMMITTED_END)), tl.constexpr(int(Column.EXTRA))
_DISTANCES, _LANE = tl.constexpr(int(Column.DISTANCES)), tl.constexpr(int(Column.LANE))
_ITEM, _NUM_ITEMS = tl.constexpr(int(Column.ITEM)), tl.constexpr(int(Column.NUM_ITEMS))
_HEAD, _HIDDEN = tl.constexpr(ITEM_HEAD), tl.constexpr(HIDDEN)


class TritonCompute:
    """See `pipedec.model.table_attention.Compute`. Contexts are cut so that every processor has two small programs, or
    one large. `keys`: that a program looks at together, as many as its shared memory holds."""

    def __init__(self, kv_heads: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device) -> None:
        self._group: int = triton.next_power_of_2(heads // kv_heads)
        self._kv_heads, self._dim, self._bytes = kv_heads, _padded(head_dim), max(2, dtype.itemsize)
        self._processors, shared = processors(device), shared_memory(device)
        most = _MAX_KEYS[self._bytes]
        self._large = self._bytes == 2 and self._memory(_MANY_QUERIES, most, pairs=4) < shared
        self.keys = most
        queries = max(_MAX_QUERIES[self._bytes], self._group)  # a row's are in one program
        pairs = 2 if queries < _MANY_QUERIES else 4
        while self.keys > _MIN_KEYS and self._memory(queries, self.keys, pairs) > shared:
            self.keys //= 2

    def _memory(self, queries: int, keys: int, pairs: int) -> int:
        """Bytes of shared memory that a program takes with that many pairs of K and V on their way."""
        return self._bytes * self._dim * (queries + 2 * pairs * keys) + 4 * queries * keys

    def _is_large(self, rows: int) -> bool:
        return self._large and rows * self._group >= _MANY_QUERIES

    def tile(self, rows: int) -> int:
        queries = _MANY_QUERIES if self._is_large(rows) else _MAX_QUERIES[self._bytes]
        least, most = max(1, _MIN_QUERIES // self._group), max(1, queries // self._group)
        fitting: int = min(triton.next_power_of_2(rows), most)
        return max(least, fitting)

    def spread(self, rows: int) -> int:
        programs = self._processors if self._is_large(rows) else 2 * self._processors
        return max(1, programs // self._kv_heads)

    def __call__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        bound: Bound,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        layout = bound.layout
        output: torch.Tensor = tree_attention(
            query, keys, values, bound.table, layout.rows, layout.tile, layout.items, self.keys, scale, window
        )
        return output

    def store(self, pool: KVPool, layer: int, bound: Bound, keys: torch.Tensor, values: torch.Tensor) -> None:
        store_in_pool(pool.keys, pool.values, layer, bound.table, bound.layout.rows, keys, values)

    def prepare(self, bound: Bound) -> None:
        """Nothing: the kernels read the table themselves."""


def launch(queries: int) -> dict[str, int]:
    """How to launch a program of so many queries."""
    large = queries >= _MANY_QUERIES
    return {"num_warps": 8 if large else 4, "num_stages": 5 if large else 2}


def _padded(head_dim: int) -> int:
    size: int = max(16, triton.next_power_of_2(head_dim))
    return size


@torch.library.custom_op("pipedec::tree_attention", mutates_args=())
def tree_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    table: torch.Tensor,
    rows_stride: int,
    tile: int,
    items: int,
    keys_at_once: int,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Query [heads, rows, head_dim] over one layer's pool [kv_heads, slots, head_dim], as a table says whose layout has
    so many rows, rows in a tile, and items: output [rows, heads, head_dim]."""
    heads, rows, head_dim = query.shape
    kv_heads = keys.shape[0]
    group = triton.next_power_of_2(heads // kv_heads)
    padded = _padded(head_dim)
    queries = tile * group
    query = query if query.stride(2) == 1 else query.contiguous()
    partial = torch.empty(items, kv_heads, queries, padded, dtype=torch.float32, device=query.device)
    state = torch.empty(2, items, kv_heads, queries, dtype=torch.float32, device=query.device)
    output = torch.empty(rows, heads, head_dim, dtype=query.dtype, device=query.device)
    sizes = {"GROUP": heads // kv_heads, "GROUP_PADDED": group, "DIM": head_dim, "DIM_PADDED": padded}
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]  # Triton launches on the current one
        _attend_piece[(items, kv_heads)](
            query,
            keys,
            values,
            table,
            partial,
            state,
            query.stride(1),
            query.stride(0),
            keys.stride(0),
            keys.stride(1),
            rows_stride,
            len(Column) * rows_stride,
            scale * _LOG2_E,
            window or 0,
            TILE=tile,
            KEYS=keys_at_once,
            WINDOWED=window is not None,
            UPCAST=upcast(query.dtype),
            **sizes,
            **launch(queries),
            enable_fp_fusion=True,
        )
        bundle = group if rows >= _BUNDLED_ROWS and group == heads // kv_heads else 1
        _join_pieces[(rows, heads // bundle)](
            partial,
            state,
            table,
            output,
            rows_stride,
            items,
            kv_heads,
            QUERIES=queries,
            BUNDLE=bundle,
            PIECES=max(2, 16 // bundle),
            **sizes,
            enable_fp_fusion=True,
        )
    return output


tree_attention.register_fake(like_output)


@triton.jit  # type: ignore[untyped-decorator]
def _fold(query, k, v, seen, scale, top, total, sums, UPCAST: tl.constexpr):  # type: ignore[no-untyped-def]
    """Add some keys to the running softmax of each query: its largest score, the sum of weights, and of values."""
    if UPCAST:
        query, k = query.to(tl.float32), k.to(tl.float32)
    scores = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where(seen, scores, float("-inf"))
    new_top = tl.maximum(top, tl.max(scores, 1))
    base = tl.where(new_top == float("-inf"), 0.0, new_top)  # nothing seen yet: exp2(-inf - 0) is 0, not NaN
    weights = tl.exp2(scores - base[:, None])
    shrink = tl.exp2(top - base)
    products = weights.to(v.dtype)
    if UPCAST:
        products, v = products.to(tl.float32), v.to(tl.float32)
    sums = sums * shrink[:, None] + tl.dot(products, v, input_precision="ieee")
    return new_top, total * shrink + tl.sum(weights, 1), sums


@triton.jit(do_not_specialize=_VARYING)  # type: ignore[untyped-decorator]
def _attend_piece(  # type: ignore[no-untyped-def]
    query,
    keys,
    values,
    table,
    partial,
    state,
    query_row_stride,
    query_head_stride,
    head_stride,
    slot_stride,
    rows_stride,
    items_at,
    scale,
    window,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    TILE: tl.constexpr,
    KEYS: tl.constexpr,
    WINDOWED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """One item and KV head: running softmax of TILE * GROUP_PADDED queries over the keys in [begin, end)."""
    item, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    entry = table + items_at + item * (_HEAD + TILE)
    begin, end, extra = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    if begin < end:
        QUERIES: tl.constexpr = TILE * GROUP_PADDED
        lane = tl.arange(0, QUERIES)
        member = lane % GROUP_PADDED
        row = tl.load(entry + _HEAD + lane // GROUP_PADDED)
        real = (row >= 0) & (member < GROUP)
        row = tl.maximum(row, 0)
        dim = tl.arange(0, DIM_PADDED)
        inside_dim = dim[None, :] < DIM
        where = row[:, None] * query_row_stride + (head * GROUP + member)[:, None] * query_head_stride + dim[None, :]
        q = tl.load(query + where, mask=real[:, None] & inside_dim, other=0.0)
        first = tl.load(table + _FIRST * rows_stride + row)
        committed_end = tl.load(table + _COMMITTED_END * rows_stride + row)
        distances = tl.load(table + _DISTANCES * rows_stride + row)
        position = tl.load(table + _POSITION * rows_stride + row)
        keys += head * head_stride
        values += head * head_stride

        top = tl.full([QUERIES], float("-inf"), tl.float32)
        total = tl.zeros([QUERIES], tl.float32)
        sums = tl.zeros([QUERIES, DIM_PADDED], tl.float32)
        start = begin
        if WINDOWED:  # nobody in the tile sees what lies before
            start = tl.maximum(begin, tl.min(tl.where(real, first + position - window + 1, end), 0))
        for at in range(start, tl.minimum(end, extra), KEYS):
            index = at + tl.arange(0, KEYS)
            inside = index < tl.minimum(end, extra)
            cell = tl.load(table + index, mask=inside, other=0)[:, None].to(tl.int64) * slot_stride + dim[None, :]
            k = tl.load(keys + cell, mask=inside[:, None] & inside_dim, other=0.0)
            v = tl.load(values + cell, mask=inside[:, None] & inside_dim, other=0.0)
            seen = inside[None, :] & (index[None, :] < committed_end[:, None])
            if WINDOWED:
                seen = seen & (position[:, None] - (index[None, :] - first[:, None]) < window)
            top, total, sums = _fold(q, k, v, seen, scale, top, total, sums, UPCAST)
        for at in range(tl.maximum(begin, extra), end, KEYS):
            index = at + tl.arange(0, KEYS)
            inside = index < end
            cell = tl.load(table + index, mask=inside, other=0)[:, None].to(tl.int64) * slot_stride + dim[None, :]
            k = tl.load(keys + cell, mask=inside[:, None] & inside_dim, other=0.0)
            v = tl.load(values + cell, mask=inside[:, None] & inside_dim, other=0.0)
            back = tl.load(
                table + distances[:, None] + (index - extra)[None, :],
                mask=real[:, None] & inside[None, :],
                other=_HIDDEN,
            )
            seen = back >= 0
            if WINDOWED:
                seen = seen & (back < window)
            top, total, sums = _fold(q, k, v, seen, scale, top, total, sums, UPCAST)

        place = (item * tl.num_programs(1) + head) * QUERIES + lane
        tl.store(partial + place[:, None] * DIM_PADDED + dim[None, :], sums, mask=real[:, None])
        tl.store(state + place, top, mask=real)
        tl.store(state + tl.num_programs(0) * tl.num_programs(1) * QUERIES + place, total, mask=real)


@triton.jit(do_not_specialize=_VARYING)  # type: ignore[untyped-decorator]
def _join_pieces(  # type: ignore[no-untyped-def]
    partial,
    state,
    table,
    output,
    rows_stride,
    items,
    kv_heads,
    GROUP: tl.constexpr,
    GROUP_PADDED: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
    QUERIES: tl.constexpr,
    BUNDLE: tl.constexpr,
    PIECES: tl.constexpr,
):
    """One row and some query heads of one KV head: their softmax over all pieces. A row without items, which is
    padding, gets zeros."""
    row = tl.program_id(0)
    head = tl.program_id(1) * BUNDLE + tl.arange(0, BUNDLE)
    item = tl.load(table + _ITEM * rows_stride + row)
    count = tl.load(table + _NUM_ITEMS * rows_stride + row)
    lane = tl.load(table + _LANE * rows_stride + row) * GROUP_PADDED + head % GROUP
    dim = tl.arange(0, DIM_PADDED)
    top = tl.full([BUNDLE], float("-inf"), tl.float32)
    total = tl.zeros([BUNDLE], tl.float32)
    sums = tl.zeros([BUNDLE, DIM_PADDED], tl.float32)
    for at in range(0, count, PIECES):
        piece = at + tl.arange(0, PIECES)
        inside = (piece < count)[:, None]
        place = ((item + piece).to(tl.int64) * kv_heads)[:, None] * QUERIES + (head // GROUP * QUERIES + lane)[None, :]
        tops = tl.load(state + place, mask=inside, other=float("-inf"))
        totals = tl.load(state + items * kv_heads * QUERIES + place, mask=inside, other=0.0)
        values = tl.load(
            partial + place[:, :, None] * DIM_PADDED + dim[None, None, :], mask=inside[:, :, None], other=0.0
        )
        new_top = tl.maximum(top, tl.max(tops, 0))
        base = tl.where(new_top == float("-inf"), 0.0, new_top)
        weights = tl.exp2(tops - base[None, :])
        shrink = tl.exp2(top - base)
        total = total * shrink + tl.sum(weights * totals, 0)
        sums = sums * shrink[:, None] + tl.sum(weights[:, :, None] * values, 0)
        top = new_top
    result = sums / tl.where(total == 0.0, 1.0, total)[:, None]
    place = (row * (tl.num_programs(1) * BUNDLE) + head)[:, None] * DIM + dim[None, :]
    tl.store(output + place, result.to(output.dtype.element_ty), mask=(dim < DIM)[None, :])
