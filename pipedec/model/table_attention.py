"""Attention over the KV pool that reads a table on the device, so that its shapes do not depend on what rows see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pipedec.model.context import Context, Ints
from pipedec.model.kv_pool import KVPool
from pipedec.model.table import HIDDEN, Column, Layout, TableMaker, needed, num_tiles, room


@dataclass(slots=True, eq=False)
class Bound:
    """A table on the device, int32 [at least layout.size]."""

    layout: Layout
    table: torch.Tensor
    _slots: torch.Tensor | None = field(default=None)
    _distances: torch.Tensor | None = field(default=None)

    def column(self, column: Column) -> torch.Tensor:
        """int32 [rows]"""
        return self.table[column * self.layout.rows : (column + 1) * self.layout.rows]

    def slots(self) -> torch.Tensor:
        """Where the rows are stored: int64 [rows]"""
        if self._slots is None:
            self._slots = self.column(Column.SLOT).long()
        return self._slots

    @property
    def keys(self) -> torch.Tensor:
        """All keys, and what lies behind them: int32 [layout.keys]"""
        return self.table[self.layout.keys_at : self.layout.keys_at + self.layout.keys]

    def distances(self) -> torch.Tensor:
        """How far back each key lies for each row, HIDDEN where it is not seen: int32 [rows, keys]"""
        if self._distances is None:
            at = self.layout.keys_at + torch.arange(self.layout.keys, dtype=torch.int32, device=self.table.device)
            named = {column: self.column(column)[:, None] for column in Column}
            committed = (named[Column.FIRST] <= at) & (at < named[Column.COMMITTED_END])
            extra = (named[Column.EXTRA] <= at) & (at < named[Column.EXTRA_END])
            back = named[Column.POSITION] - (at - named[Column.FIRST])
            entry = torch.where(extra, named[Column.DISTANCES] + at - named[Column.EXTRA], 0)
            self._distances = torch.where(extra, self.table[entry], torch.where(committed, back, HIDDEN))
        return self._distances


class Compute(Protocol):
    """Attention of query [heads, rows, head_dim] over one layer's pool [kv_heads, slots, head_dim], as `bound` says:
    output [rows, heads, head_dim]. The rows of a padded table see nothing; what they get is finite."""

    def __call__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        bound: Bound,
        scale: float,
        window: int | None,
    ) -> torch.Tensor: ...

    def store(self, pool: KVPool, layer: int, bound: Bound, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep [kv_heads, rows, head_dim] of one layer where `bound` says."""

    def prepare(self, bound: Bound) -> None:
        """Compute what all layers need of this table."""

    def tile(self, rows: int) -> int:
        """Rows per tile in a table of so many rows."""

    def spread(self, rows: int) -> int:
        """Into about how many items the contexts of a table of so many rows are cut."""


class TableAttention:
    """See `pipedec.model.attention.Attention`. Between batches, `bind` may choose another table."""

    def __init__(self, pool: KVPool, num_slots: int, compute: Compute) -> None:
        self.num_slots = num_slots
        self._pool, self._compute = pool, compute
        self.maker = TableMaker(num_slots, scratch=pool.num_slots - 1)
        self.bound: Bound | None = None

    def layout(self, rows: int, keys: int, distances: int, contexts: Sequence[Context] | None = None) -> Layout:
        """Sizes for these contexts, or for any that have so many rows, keys and distances."""
        tile, spread = self._compute.tile(rows), self._compute.spread(rows)
        tiles = rows if contexts is None else num_tiles(contexts, tile)
        return Layout(rows, tile, spread, room(tiles, spread), keys, distances)

    def bind(self, bound: Bound) -> None:
        self.bound = bound
        self._compute.prepare(bound)

    def reset(self) -> None:
        """Nothing to forget: each table names every slot that is read."""

    def poison(self, slots: Sequence[int]) -> None:
        """Nobody reads a slot that no table names."""

    def abandon(self, contexts: Sequence[Context]) -> None:
        """Nobody reads a slot that no table names."""

    def begin(self, contexts: Sequence[Context], order: Ints) -> None:
        layout = self.layout(len(order), *needed(contexts), contexts)
        table = self.maker.make(layout, contexts, order, None)
        self.bind(Bound(layout, torch.from_numpy(table).to(self._pool.device)))

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        assert self.bound is not None
        self._compute.store(self._pool, layer, self.bound, keys, values)

    def attend(self, layer: int, query: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
        assert self.bound is not None
        return self._compute(query, self._pool.keys[layer], self._pool.values[layer], self.bound, scale, window)


@torch.library.custom_op("pipedec::store_rows", mutates_args=("key_pool", "value_pool"))
def store_rows(
    key_pool: torch.Tensor,
    value_pool: torch.Tensor,
    layer: int,
    slots: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> None:
    """Keep [kv_heads, rows, head_dim] of one layer at int64 `slots`. An operator of its own, which a compiler that
    fuses what is around it does not look into."""
    key_pool[layer].index_copy_(1, slots, keys)
    value_pool[layer].index_copy_(1, slots, values)


class DenseCompute:
    """With torch's operators alone: every row against every key in the table, and then a mask. Costs what its capacity
    says, whatever the rows see: the reference for a kernel, and the way to run static shapes without one."""

    def __call__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        bound: Bound,
        scale: float,
        window: int | None,
    ) -> torch.Tensor:
        output: torch.Tensor = dense_attention(query, keys, values, bound.keys, bound.distances(), scale, window)
        return output

    def store(self, pool: KVPool, layer: int, bound: Bound, keys: torch.Tensor, values: torch.Tensor) -> None:
        store_rows(pool.keys, pool.values, layer, bound.slots(), keys, values)

    def prepare(self, bound: Bound) -> None:
        bound.slots()
        bound.distances()

    def tile(self, rows: int) -> int:
        return 1

    def spread(self, rows: int) -> int:
        return 1


@torch.library.custom_op("pipedec::dense_attention", mutates_args=())
def dense_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    slots: torch.Tensor,
    distances: torch.Tensor,
    scale: float,
    window: int | None,
) -> torch.Tensor:
    """Query [heads, rows, head_dim] over the int32 slots [n] of one layer's pool [kv_heads, slots, head_dim], which lie
    `distances` [rows, n] back: output [rows, heads, head_dim]. What no row sees need not be a slot."""
    seen = (distances != HIDDEN) if window is None else (distances >= 0) & (distances < window)
    read = torch.where(seen.any(0), slots, 0).long()
    kv_heads, _, head_dim = keys.shape
    heads, rows, _ = query.shape
    chosen = keys.index_select(1, read).float()[:, None]
    # A mask does not hide what is not a number.
    summed = torch.where(seen.any(0)[:, None], values.index_select(1, read), 0).float()[:, None]
    folded = query.reshape(kv_heads, -1, rows, head_dim).float() * scale
    scores = torch.where(seen, folded @ chosen.transpose(2, 3), -torch.inf)
    weights = torch.where(seen.any(1)[:, None], scores.softmax(-1), 0)
    output = (weights @ summed).reshape(heads, rows, head_dim)
    return output.transpose(0, 1).to(query.dtype).contiguous()


def like_output(query: torch.Tensor, *_: object) -> torch.Tensor:
    """An output of the shape that attention of this query has, for a compiler."""
    heads, rows, head_dim = query.shape
    return query.new_empty(rows, heads, head_dim)


dense_attention.register_fake(like_output)
