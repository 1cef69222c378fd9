"""Attention on a CPU that gives a row the same numbers, to the last bit, whatever else is computed with it.

A sum of floats depends on the order of its terms, and the order, in a library's kernels, on how many rows and keys
there are and where masked keys lie between. So a token would get other numbers as a node of a tree than alone, and
where two tokens are nearly as likely, another could be chosen. Here each sum has one order, that of positions: a score
is one product of two vectors; values are summed within blocks of `BLOCK` positions, then block after block. Masked keys
in between add exact zeros. See "batch invariance": He et al., Defeating Nondeterminism in LLM Inference, 2025.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pipedec.model.context import Bools, Context, Ints
from pipedec.model.kv_pool import KVPool, stored_at
from pipedec.model.packed import chained_product
from pipedec.model.plan import in_order

BLOCK = 128  # positions
_MOST_COLUMNS = 256  # of a block that are summed in one product, those hidden from some rows included
_MOST_ROWS = 128  # at once, for the sake of memory
_STEP = 32  # columns are a multiple of it: oneDNN compiles, and keeps, a product for every size that it is given


@dataclass(slots=True, eq=False)
class _Unit:
    """Rows of one request that are computed together: `rows` [R] of the batch, None for all in order.

    Columns are keys in the order of positions, at `slots` [N]; `blocks` are ranges of them.
    """

    rows: torch.Tensor | None
    slots: torch.Tensor
    blocks: tuple[slice, ...]
    visible: Bools  # [R, N]
    row_positions: Ints  # [R]
    key_positions: Ints  # [N]
    _bias: dict[int | None, torch.Tensor | None] = field(default_factory=dict)
    _values: torch.Tensor | None = None

    def bias(self, window: int | None) -> torch.Tensor | None:
        """0 or -inf, float32 [R, N]; None where everything is seen."""
        if window not in self._bias:
            visible = self.visible
            if window is not None:
                visible = visible & (self.row_positions[:, None] - self.key_positions < window)
            mask = torch.from_numpy(visible)
            self._bias[window] = None if visible.all() else torch.zeros(mask.shape).masked_fill_(~mask, float("-inf"))
        return self._bias[window]

    def values(self, values: torch.Tensor) -> torch.Tensor:
        """Of one layer, float32 [kv_heads, N, head_dim + 1]: a one behind each, so that weights are summed as values
        are. Valid until the next layer's."""
        if self._values is None:
            self._values = torch.ones(values.shape[0], len(self.slots), values.shape[2] + 1)
        self._values[..., :-1] = values.index_select(1, self.slots)
        return self._values


class InvariantAttention:
    """See `pipedec.model.attention.Attention`."""

    def __init__(self, pool: KVPool) -> None:
        self._pool = pool
        self._position: Ints = np.zeros(pool.num_slots, np.int64)
        self._slots: torch.Tensor | slice = slice(0, 0)
        self._units: list[_Unit] = []

    def reset(self) -> None:
        """Nothing to forget: only slots that a context names are read."""

    def poison(self, slots: Sequence[int]) -> None:
        """Nobody reads a slot that no context names."""

    def abandon(self, contexts: Sequence[Context]) -> None:
        """Nobody reads a slot that no context names."""

    def begin(self, contexts: Sequence[Context], order: Ints) -> None:
        slots, self._units = np.empty(len(order), np.int64), []
        for context in contexts:
            self._position[context.slots] = context.positions
            place = np.searchsorted(order, context.rows)
            slots[place] = context.slots
            for first in range(0, len(place), _MOST_ROWS):
                chosen = np.arange(first, min(first + _MOST_ROWS, len(place)))
                self._units += self._split(context, place, chosen, len(order))
        self._slots = stored_at(slots, self._pool.device)

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._pool.write(layer, self._slots, keys, values)

    def attend(self, layer: int, query: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        scaled = query.float() * scale
        if len(self._units) == 1 and self._units[0].rows is None:
            return _attend(scaled, self._units[0], keys, values, window).to(query.dtype)
        output = query.new_empty(query.shape[1], query.shape[0], query.shape[2])
        for unit in self._units:
            rows = slice(None) if unit.rows is None else unit.rows
            output[rows] = _attend(scaled[:, rows], unit, keys, values, window).to(query.dtype)
        return output

    def _split(self, context: Context, place: Ints, chosen: Ints, batch_rows: int) -> Iterator[_Unit]:
        """Units of these rows of a context: one, or more where a tree has too many keys for one sum."""
        committed = int(context.prefix[chosen].max())
        extra = np.flatnonzero(context.visible[chosen].any(axis=0))
        slots = np.concatenate([context.committed[:committed], context.extra[extra]])
        positions = np.concatenate([np.arange(committed), self._position[context.extra[extra]]])
        visible = np.concatenate(
            [np.arange(committed) < context.prefix[chosen, None], context.visible[np.ix_(chosen, extra)]], axis=1
        )
        ordered = np.argsort(positions, kind="stable")
        positions = positions[ordered]
        edges = np.searchsorted(positions, np.arange(0, positions[-1] + BLOCK + 1, BLOCK)).tolist()
        if len(chosen) > 1 and max(np.diff(edges)) > _MOST_COLUMNS:
            for half in np.array_split(chosen, 2):
                yield from self._split(context, place, half, batch_rows)
            return
        rows, more = place[chosen], -int(edges[-1] - edges[-2]) % _STEP  # columns that nobody sees, in the last block
        edges[-1] += more
        yield _Unit(
            rows=None if in_order(rows, batch_rows) else torch.from_numpy(rows),
            slots=torch.from_numpy(np.pad(slots[ordered], (0, more), mode="edge")),
            blocks=tuple(slice(a, b) for a, b in itertools.pairwise(edges) if a < b),
            visible=np.pad(visible[:, ordered], ((0, 0), (0, more))),
            row_positions=context.positions[chosen],
            key_positions=np.pad(positions, (0, more), mode="edge"),
        )


def _attend(
    query: torch.Tensor, unit: _Unit, keys: torch.Tensor, values: torch.Tensor, window: int | None
) -> torch.Tensor:
    """Scaled query [heads, R, head_dim] -> [R, heads, head_dim], float32."""
    heads, count, head_dim = query.shape
    kv_heads = keys.shape[0]
    query = query.reshape(kv_heads, -1, head_dim)
    weights = _products(query, keys.index_select(1, unit.slots).float())  # [kv_heads, heads / kv_heads * R, N]
    bias = unit.bias(window)
    if bias is not None:
        weights.view(-1, count, len(unit.slots)).add_(bias)
    weights.sub_(weights.amax(-1, keepdim=True)).exp_()
    columns = unit.values(values).transpose(1, 2)
    output: torch.Tensor | None = None
    for block in unit.blocks:
        part = _products(weights[..., block], columns[..., block])
        output = part if output is None else output.add_(part)
    assert output is not None, "a row sees itself"
    return (output[..., :-1] / output[..., -1:]).view(heads, count, head_dim).transpose(0, 1)


def _products(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """[heads, M, K], [heads, N, K] -> [heads, M, N]"""
    return torch.stack([chained_product(row, column) for row, column in zip(rows, columns, strict=True)])
