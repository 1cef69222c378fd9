"""Which slots each row of a batch attends to. Plain numbers: no tensors.

Every stage keeps the same list of committed slots per request by applying the same ops in the same order.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from pipedec.errors import ProtocolError
from pipedec.wire.messages import Batch, Close, Commit, Open, Poison, Prefill, Reuse, Rows, tree_slots

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Context:
    """The rows of one request in a batch, and what they attend to.

    Row i sees the first `prefix[i]` committed slots, and those `extra` slots where `visible[i]` holds.
    """

    owner: int  # of this request, never used again; what it wrote to the pool bears this number
    rows: Ints  # [R] indices of activation rows
    positions: Ints  # [R]
    slots: Ints  # [R] where the rows themselves are stored
    committed: Ints  # [n]; slot i holds position i
    prefix: Ints  # [R]
    extra: Ints  # [m] ancestors and the tree rows themselves
    visible: Bools  # [R, m]


@dataclass(slots=True, eq=False)
class _Sequence:
    owner: int
    slots: Ints = field(default_factory=lambda: np.empty(64, np.int64))
    length: int = 0

    def append(self, slots: tuple[int, ...]) -> None:
        end = self.length + len(slots)
        if end > len(self.slots):
            self.slots = np.resize(self.slots, max(end, 2 * len(self.slots)))
        self.slots[self.length : end] = slots
        self.length = end


@dataclass(slots=True, eq=False)
class _Part:
    """Rows of one sequence from one prefill, or its tree rows."""

    rows: Ints
    positions: Ints
    slots: Ints
    prefix: Ints
    extra: Ints
    visible: Bools


@dataclass(frozen=True, slots=True)
class Limits:
    """What a batch may name: slots, tokens and positions below these."""

    slots: int
    vocabulary: int
    positions: int


class Contexts:
    """The committed slots of every open request, and the contexts of a batch's rows."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sequences: dict[int, _Sequence] = {}
        self._opened = 0

    def reset(self) -> None:
        self._sequences.clear()

    def apply(self, batch: Batch, alive: Bools) -> list[Context]:
        """Apply the ops; return contexts of the rows where `alive` [activation rows] holds.

        A batch that fails its checks raises ProtocolError and changes nothing.
        """
        self._check(batch, alive)
        parts: dict[int, tuple[_Sequence, list[_Part]]] = {}
        row = 0
        for op in batch.ops:
            match op:
                case Open():
                    self._opened += 1
                    self._sequences[op.request] = _Sequence(self._opened)
                case Close():
                    del self._sequences[op.request]
                case Commit() | Reuse():
                    self._sequences[op.request].append(op.slots)
                case Prefill():
                    sequence = self._sequences[op.request]
                    parts.setdefault(sequence.owner, (sequence, []))[1].append(_prefill_part(op, row))
                    sequence.append(op.slots)
                    row += len(op.tokens)
                case Poison():
                    pass
        for request, part in _tree_parts(batch, row, alive[row:]):
            sequence = self._sequences[request]
            part.prefix[:] = sequence.length
            parts.setdefault(sequence.owner, (sequence, []))[1].append(part)
        return [_merge(sequence, found) for sequence, found in parts.values()]

    def _check(self, batch: Batch, alive: Bools) -> None:
        lengths = self._check_ops(batch)
        if len(alive) != batch.num_rows or not alive[: batch.num_prefill].all():
            raise ProtocolError("alive rows: prefill rows are always present, and no row lies outside the batch")
        rows, limits = batch.rows, self._limits
        ancestors = np.diff(rows.ancestor_offsets)
        if len(rows.ancestor_offsets) != len(rows) + 1 or (ancestors < 0).any():
            raise ProtocolError("rows: ancestor_offsets do not rise from row to row")
        if rows.ancestor_offsets[0] != 0 or rows.ancestor_offsets[-1] != len(rows.ancestor_slots):
            raise ProtocolError("rows: ancestor_offsets do not cover ancestor_slots")
        _bound("tree row slot", rows.slot, limits.slots)
        _bound("ancestor slot", rows.ancestor_slots, limits.slots)
        _bound("token", rows.token, limits.vocabulary)
        _bound("position", rows.position, limits.positions)
        if unknown := set(rows.request.tolist()) - lengths.keys():
            raise ProtocolError(f"rows: request {min(unknown)} is not open")
        committed = np.array([lengths[request] for request in rows.request.tolist()], dtype=np.int64)
        if (rows.position != committed + ancestors).any():
            raise ProtocolError("rows: a position is not the number of committed slots and ancestors before it")

    def _check_ops(self, batch: Batch) -> dict[int, int]:
        """Committed length of each request that is open after the ops."""
        lengths = {request: sequence.length for request, sequence in self._sequences.items()}
        tokens: list[int] = []
        for op in batch.ops:
            match op:
                case Open():
                    if op.request in lengths:
                        raise ProtocolError(f"open: request {op.request} is open already")
                    lengths[op.request] = 0
                    continue
                case Poison():
                    continue
            if op.request not in lengths:
                raise ProtocolError(f"{type(op).__name__.lower()}: request {op.request} is not open")
            if isinstance(op, Close):
                del lengths[op.request]
                continue
            if isinstance(op, Prefill | Reuse):
                if len(op.tokens) != len(op.slots) or op.start != lengths[op.request]:
                    raise ProtocolError(
                        f"{type(op).__name__.lower()}: request {op.request} has {lengths[op.request]} committed "
                        f"tokens, {len(op.tokens)} tokens for {len(op.slots)} slots at {op.start} do not follow"
                    )
                tokens += op.tokens
            lengths[op.request] += len(op.slots)
            if lengths[op.request] > self._limits.positions:
                raise ProtocolError(f"request {op.request} is longer than {self._limits.positions} positions")
        _bound("slot", np.array(tree_slots(batch.ops), dtype=np.int64), self._limits.slots)
        _bound("token", np.array(tokens, dtype=np.int64), self._limits.vocabulary)
        return lengths


def _bound(what: str, values: npt.NDArray[np.integer], limit: int) -> None:
    if len(values) and (values.min() < 0 or values.max() >= limit):
        raise ProtocolError(f"{what}s lie in [0, {limit}), not in [{values.min()}, {values.max()}]")


def _prefill_part(op: Prefill, first_row: int) -> _Part:
    steps = np.arange(len(op.tokens), dtype=np.int64)
    slots = np.array(op.slots, dtype=np.int64)
    positions = op.start + steps
    return _Part(first_row + steps, positions, slots, positions + 1, slots[:0], np.zeros((len(steps), 0), np.bool_))


def _tree_parts(batch: Batch, first_row: int, alive: Bools) -> list[tuple[int, _Part]]:
    """One part for each request, in one pass over all: a loop over requests would be most of a step's own time."""
    rows, present = batch.rows, np.flatnonzero(alive)
    if not len(present):
        return []
    if (rows.request == rows.request[present[0]]).all():
        return [(int(rows.request[present[0]]), _lone_part(rows, first_row, present))]
    requests, group = np.unique(rows.request[present], return_inverse=True)
    order = np.argsort(group, kind="stable")
    index, group = present[order], group[order]  # rows, request by request
    starts = np.searchsorted(group, np.arange(len(requests) + 1))
    slots = rows.slot[index].astype(np.int64)

    # Who sees which slot, as pairs; of each request those it sees at all, ascending, are its columns.
    place = np.full(len(rows), -1)
    place[index] = np.arange(len(index))
    seer = np.repeat(place, np.diff(rows.ancestor_offsets))
    seen = rows.ancestor_slots[seer >= 0].astype(np.int64)
    seer = np.concatenate([np.arange(len(index)), seer[seer >= 0]])
    seen = np.concatenate([slots, seen])
    stride = int(seen.max()) + 1
    keys, column = np.unique(group[seer] * stride + seen, return_inverse=True)
    extra, columns = keys % stride, np.searchsorted(keys, np.arange(len(requests) + 1) * stride)
    widths = np.diff(columns)
    ends = np.cumsum(np.diff(starts) * widths)
    owner = group[seer]
    visible = np.zeros(int(ends[-1]), np.bool_)
    begins = ends - np.diff(starts) * widths
    visible[begins[owner] + (seer - starts[owner]) * widths[owner] + column - columns[owner]] = True

    positions = rows.position[index].astype(np.int64)
    parts = []
    for number, request in enumerate(requests.tolist()):
        mine, own = slice(starts[number], starts[number + 1]), slice(columns[number], columns[number + 1])
        matrix = visible[begins[number] : ends[number]].reshape(-1, widths[number])
        prefix = np.zeros(starts[number + 1] - starts[number], np.int64)
        parts.append(
            (request, _Part(first_row + index[mine], positions[mine], slots[mine], prefix, extra[own], matrix))
        )
    return parts


def _lone_part(rows: Rows, first_row: int, index: Ints) -> _Part:
    """The same where all rows are of one request, which is when a step should take the least."""
    slots, count = rows.slot[index].astype(np.int64), len(index)
    place = np.full(len(rows), -1)
    place[index] = np.arange(count)
    seer = np.repeat(place, np.diff(rows.ancestor_offsets))
    seen = np.concatenate([slots, rows.ancestor_slots[seer >= 0]])
    extra, column = np.unique(seen, return_inverse=True)
    visible = np.zeros((count, len(extra)), np.bool_)
    visible[np.concatenate([np.arange(count), seer[seer >= 0]]), column] = True
    positions = rows.position[index].astype(np.int64)
    return _Part(first_row + index, positions, slots, np.zeros(count, np.int64), extra, visible)


def _merge(sequence: _Sequence, parts: list[_Part]) -> Context:
    """One context of all parts; only the last can be a tree part, and only that has extra slots."""
    tree, committed = parts[-1], sequence.slots[: sequence.length].copy()
    if len(parts) == 1:
        return Context(
            sequence.owner, tree.rows, tree.positions, tree.slots, committed, tree.prefix, tree.extra, tree.visible
        )
    visible = np.zeros((sum(len(part.rows) for part in parts), len(tree.extra)), np.bool_)
    visible[len(visible) - len(tree.rows) :] = tree.visible
    return Context(
        owner=sequence.owner,
        rows=np.concatenate([part.rows for part in parts]),
        positions=np.concatenate([part.positions for part in parts]),
        slots=np.concatenate([part.slots for part in parts]),
        committed=committed,
        prefix=np.concatenate([part.prefix for part in parts]),
        extra=tree.extra,
        visible=visible,
    )
