"""What the rows of a batch attend to, as one array of int32 that a device reads. Plain numbers: no tensors.

A kernel launched over it takes nothing else, so one that was captured in a CUDA graph sees new rows, slots, positions
and lengths when the array's contents change. It holds, one after the other:

    columns    [len(Column), rows]   what is known of each row
    items      [items, 3 + tile]     begin, end, extra, then the rows of a tile, -1 where there is none
    keys       request by request, the slots that its rows attend to: committed ones, then what is extra
    distances  row by row, how far back each extra key of its request lies; HIDDEN if it is not seen

All rows of a request share its keys. An item is what one program computes: the rows of a tile against the keys in
[begin, end), of which those from `extra` on are extra. Contexts are cut into pieces of one length, the longer the more
there is to read in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from pipedec.model.context import Context, Ints

Table = npt.NDArray[np.int32]

HIDDEN = -1
MIN_PIECE = 128  # keys; shorter pieces cost more to put together than they save
PIECE_STEP = 64  # keys; longer pieces are multiples of it
ITEM_HEAD = 3  # begin, end, extra


class Column(IntEnum):
    """All but the first three are places in the array, or counts."""

    TOKEN = 0
    POSITION = 1
    SLOT = 2  # where the row itself is stored
    FIRST = 3  # the keys of the row's request begin here; committed ones lie in the order of their positions
    COMMITTED_END = 4  # of the committed keys that the row sees
    EXTRA = 5
    EXTRA_END = 6
    DISTANCES = 7  # of the row
    ITEM = 8  # the first item of the row's tile
    NUM_ITEMS = 9  # which follow each other
    LANE = 10  # the row's place in its tile


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes of a table: at most so many rows, keys and distances, and rows in a tile. Contexts are cut into about
    `spread` items, which a device computes at once; `items` is room for more, as a tile has one at least."""

    rows: int
    tile: int
    spread: int
    items: int
    keys: int
    distances: int

    @property
    def items_at(self) -> int:
        return len(Column) * self.rows

    @property
    def keys_at(self) -> int:
        return self.items_at + self.items * (ITEM_HEAD + self.tile)

    @property
    def size(self) -> int:
        return self.keys_at + self.keys + self.distances


def needed(contexts: Sequence[Context]) -> tuple[int, int]:
    """How many keys and distances these contexts have."""
    keys = sum(len(context.committed) + len(context.extra) for context in contexts)
    return keys, sum(len(context.extra) * len(context.rows) for context in contexts)


def num_tiles(contexts: Sequence[Context], size: int) -> int:
    """Into how many tiles of so many rows the rows of these contexts fall; one row each at worst."""
    return sum(-(-len(context.rows) // size) for context in contexts)


class TableMaker:
    """Makes the table of each batch. Remembers for which position each slot was written."""

    def __init__(self, num_slots: int, scratch: int) -> None:
        self._position: Ints = np.zeros(num_slots, np.int64)
        self._scratch = scratch

    def empty(self, layout: Layout) -> Table:
        """A table whose rows are all padding: they are stored in the scratch slot, and see nothing."""
        table = np.zeros(layout.keys_at, np.int32)
        table[: layout.items_at].reshape(len(Column), layout.rows)[Column.SLOT] = self._scratch
        return table

    def make(self, layout: Layout, contexts: Sequence[Context], order: Ints, tokens: Ints | None) -> Table:
        """The table of contexts that together have the activation rows `order`, ascending, and these tokens.

        It ends with the numbers it has: at most `layout.size`. `layout` must have room for what `needed` says.
        """
        head = self.empty(layout)
        columns = head[: layout.items_at].reshape(len(Column), layout.rows)
        items = head[layout.items_at :].reshape(layout.items, ITEM_HEAD + layout.tile)
        if tokens is not None:
            columns[Column.TOKEN, : len(order)] = tokens
        tiles, keys, distances = list[_Tile](), list[Ints](), list[Ints]()
        at, distances_at = layout.keys_at, layout.keys_at + needed(contexts)[0]
        for context in contexts:
            self._position[context.slots] = context.positions
            place = np.searchsorted(order, context.rows)
            _describe(columns, context, place, at, distances_at)
            tiles += _tiles(context, place, at, layout.tile)
            keys += context.committed, context.extra
            back = context.positions[:, None] - self._position[context.extra]
            distances.append(np.where(context.visible, back, HIDDEN).reshape(-1))
            at += len(context.committed) + len(context.extra)
            distances_at += distances[-1].size
        _cut(items, columns, tiles, layout.spread)
        return np.concatenate([head, *keys, *distances], dtype=np.int32)


def _describe(columns: Table, context: Context, place: Ints, at: int, distances_at: int) -> None:
    """Fill the columns of one request's rows, whose keys and distances begin there."""
    committed, extra = len(context.committed), len(context.extra)
    columns[Column.POSITION, place] = context.positions
    columns[Column.SLOT, place] = context.slots
    columns[Column.FIRST, place] = at
    columns[Column.COMMITTED_END, place] = at + context.prefix
    columns[Column.EXTRA, place] = at + committed
    columns[Column.EXTRA_END, place] = at + committed + extra
    columns[Column.DISTANCES, place] = distances_at + extra * np.arange(len(place))


@dataclass(frozen=True, slots=True)
class _Tile:
    """Rows of one request, and the range of keys that they attend to."""

    rows: Ints
    begin: int
    end: int
    extra: int


def _tiles(context: Context, place: Ints, at: int, size: int) -> list[_Tile]:
    extra = at + len(context.committed)
    tiles = []
    for start in range(0, len(place), size):
        rows = slice(start, start + size)
        end = extra + len(context.extra) if len(context.extra) else at + int(context.prefix[rows].max())
        tiles.append(_Tile(place[rows], at, end, extra))
    return tiles


def room(tiles: int, spread: int) -> int:
    """How many items so many tiles may be cut into: a long one among many short ones into some."""
    return max(tiles, spread) + spread // 2


def _piece(lengths: Ints, spread: int, most: int) -> int:
    """How long the pieces are: as short as `spread` items allow, unless a few more items make them half as long; in no
    case more than `most` items."""
    even = piece = max(MIN_PIECE, -(-int(lengths.sum()) // spread // PIECE_STEP) * PIECE_STEP)
    step = max(1, even // 16 // PIECE_STEP) * PIECE_STEP
    while _count(lengths, piece) > spread and piece < 2 * even:
        piece += step
    if _count(lengths, piece) <= spread:
        return piece
    piece = even
    while _count(lengths, piece) > most:
        piece += step
    return piece


def _count(lengths: Ints, piece: int) -> int:
    return int((-(-lengths // piece)).sum())


def _cut(items: Table, columns: Table, tiles: Sequence[_Tile], spread: int) -> None:
    lengths = np.array([tile.end - tile.begin for tile in tiles])
    piece = _piece(lengths, spread, len(items))
    first = 0
    for tile, length in zip(tiles, lengths.tolist(), strict=True):
        count = -(-length // piece)
        chosen = items[first : first + count]
        chosen[:, 0] = tile.begin + piece * np.arange(count)
        chosen[:, 1] = np.minimum(chosen[:, 0] + piece, tile.end)
        chosen[:, 2] = tile.extra
        chosen[:, ITEM_HEAD:] = -1
        chosen[:, ITEM_HEAD : ITEM_HEAD + len(tile.rows)] = tile.rows
        columns[Column.ITEM, tile.rows] = first
        columns[Column.NUM_ITEMS, tile.rows] = count
        columns[Column.LANE, tile.rows] = np.arange(len(tile.rows))
        first += count
