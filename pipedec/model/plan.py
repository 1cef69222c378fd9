"""How the rows of a batch are attended to, computed once per batch and used by every layer of the span.

The rows of each request attend to that request's slots only. Where those slots fill most of a range of the pool, the
range is read in place under a mask; otherwise they are gathered. Requests of similar size are padded together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from pipedec.model.context import Bools, Context, Ints
from pipedec.model.kv_pool import stored_at

_ZERO = 0  # the owner of a slot that still holds zeros
_UNKNOWN = -1  # and of one that may hold anything, NaN included
_VIEW_MIN = 256  # context from which reading in place pays for a call of its own
_VIEW_SLACK = 1.5  # a range may be this much longer than what is attended to in it
_PAD_SLACK = 1.5  # requests padded together differ by at most this factor in context


@dataclass(slots=True, eq=False)
class Group:
    """B requests with up to R rows that attend to up to n slots each.

    `rows` [B, R] indexes the batch's rows (padding repeats a row) and is None where that is all rows in order; `real`
    are the unpadded places in it, flattened. Keys are `view`, a half-open range of slots, or gathered `slots` [B * n].
    """

    size: int
    rows: torch.Tensor | None
    real: torch.Tensor | None
    scatter: torch.Tensor | None
    view: tuple[int, int] | None
    slots: torch.Tensor | None
    visible: Bools  # [B, R, n]
    row_positions: Ints  # [B, R]
    key_positions: Ints  # [B, n]
    _bias: dict[tuple[int | None, int], torch.Tensor | None] = field(default_factory=dict)
    _gathered: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def num_rows(self) -> int:
        return int(self.visible.shape[1])

    def read(self, keys: torch.Tensor, values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V [B, kv_heads, n, head_dim] out of one layer's pool [kv_heads, slots, head_dim].

        What is gathered stays valid until the next layer's: memory is taken once per batch.
        """
        if self.view is not None:
            start, end = self.view
            return keys[None, :, start:end], values[None, :, start:end]
        assert self.slots is not None
        if self._gathered is None:
            shape = (keys.shape[0], len(self.slots), keys.shape[2])
            self._gathered = keys.new_empty(shape), values.new_empty(shape)
        torch.index_select(keys, 1, self.slots, out=self._gathered[0])
        torch.index_select(values, 1, self.slots, out=self._gathered[1])
        gathered = [part.view(part.shape[0], self.size, -1, part.shape[2]).transpose(0, 1) for part in self._gathered]
        return gathered[0], gathered[1]

    def bias(self, window: int | None, repeats: int, like: torch.Tensor) -> torch.Tensor | None:
        """What is added to the scores, [B, 1, R * repeats, n]: 0 or -inf; None where everything is seen.

        A `window` hides keys that lie `window` or more positions back. Each row is repeated `repeats` times.
        """
        key = window, repeats
        if key not in self._bias:
            visible = self.visible
            if window is not None:
                visible = visible & (self.row_positions[:, :, None] - self.key_positions[:, None, :] < window)
            self._bias[key] = None if visible.all() else _bias(visible, repeats, like)
        return self._bias[key]


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    """`slots` [rows] is where each row is stored, a slice where they are a run; `groups` cover the rows."""

    slots: torch.Tensor | slice
    groups: tuple[Group, ...]


class Planner:
    """Makes the plan of each batch. Remembers who wrote each slot and for which position."""

    def __init__(self, num_slots: int, device: torch.device) -> None:
        self._device = device
        self._owner: Ints = np.zeros(num_slots, np.int64)  # or one of the two below
        self._position: Ints = np.zeros(num_slots, np.int64)

    def reset(self) -> None:
        """Forget the owners; what they wrote may still lie in the pool, so no slot counts as zero."""
        self._owner[:] = np.where(self._owner == _ZERO, _ZERO, _UNKNOWN)

    def poison(self, slots: Sequence[int]) -> None:
        self._owner[list(slots)] = _UNKNOWN

    def abandon(self, contexts: Sequence[Context]) -> None:
        """The forward pass stopped between layers: what these rows' slots hold beyond is not theirs."""
        for context in contexts:
            self._owner[context.slots] = _UNKNOWN

    def plan(self, contexts: Sequence[Context], order: Ints) -> AttentionPlan:
        """The plan for contexts that together have the activation rows `order`, ascending."""
        slots = np.empty(len(order), np.int64)
        places = []
        for context in contexts:
            self._owner[context.slots], self._position[context.slots] = context.owner, context.positions
            place = np.searchsorted(order, context.rows)
            slots[place] = context.slots
            places.append(place)
        alone: list[Group] = []
        together: list[tuple[Context, Ints]] = []
        for context, place in zip(contexts, places, strict=True):
            view = self._view(context)
            if view is not None and (len(contexts) == 1 or len(context.committed) >= _VIEW_MIN):
                alone.append(self._viewed(context, place, view, len(order)))
            else:
                together.append((context, place))
        groups = [self._gathered(part, len(order)) for part in _similar(together)]
        return AttentionPlan(stored_at(slots, self._device), (*alone, *groups))

    def _view(self, context: Context) -> tuple[int, int] | None:
        """The range of slots to read in place, or None.

        Only this request's numbers, or zeros, may lie in it: a mask hides a finite score, but not NaN or infinity,
        and no request may depend on another. What it reuses of others is its own.
        """
        used = [part for part in (context.committed, context.extra) if len(part)]
        start, end = min(int(part.min()) for part in used), max(int(part.max()) for part in used) + 1
        if end - start > _VIEW_SLACK * sum(map(len, used)) + 16:
            return None
        owners = self._owner[start:end]
        foreign = (owners != context.owner) & (owners != _ZERO)
        foreign[context.committed - start] = False
        return None if foreign.any() else (start, end)

    def _viewed(self, context: Context, place: Ints, view: tuple[int, int], rows: int) -> Group:
        start, end = view
        committed, width = len(context.committed), end - start
        visible = np.zeros((len(place), width), np.bool_)
        visible[:, context.committed - start] = np.arange(committed) < context.prefix[:, None]
        visible[:, context.extra - start] |= context.visible
        index = None if in_order(place, rows) else self._tensor(place)[None]
        scatter = None if index is None else index[0]
        positions = self._position[start:end]
        return Group(
            1, index, None, scatter, view, None, visible[None], context.positions[None], positions[None].copy()
        )

    def _gathered(self, parts: Sequence[tuple[Context, Ints]], rows: int) -> Group:
        num_rows = max(len(place) for _, place in parts)
        num_keys = max(len(context.committed) + len(context.extra) for context, _ in parts)
        index = np.empty((len(parts), num_rows), np.int64)
        slots = np.empty((len(parts), num_keys), np.int64)
        visible = np.zeros((len(parts), num_rows, num_keys), np.bool_)
        row_positions = np.empty_like(index)
        real = np.zeros_like(index, dtype=np.bool_)
        for i, (context, place) in enumerate(parts):
            count, committed = len(place), len(context.committed)
            keys = committed + len(context.extra)
            slots[i, :committed], slots[i, committed:keys] = context.committed, context.extra
            slots[i, keys:] = context.slots[0]  # padding is hidden, but must be finite: a slot of the same request
            visible[i, :count, :committed] = np.arange(committed) < context.prefix[:, None]
            visible[i, :count, committed:keys] = context.visible
            visible[i, count:] = visible[i, 0]
            index[i, :count], index[i, count:] = place, place[0]
            row_positions[i, :count], row_positions[i, count:] = context.positions, context.positions[0]
            real[i, :count] = True
        whole = len(parts) == 1 and in_order(index[0], rows)
        return Group(
            size=len(parts),
            rows=None if whole else self._tensor(index),
            real=None if real.all() else self._tensor(np.flatnonzero(real)),
            scatter=None if whole else self._tensor(index[real]),
            view=None,
            slots=self._tensor(slots.reshape(-1)),
            visible=visible,
            row_positions=row_positions,
            key_positions=self._position[slots],
        )

    def _tensor(self, values: Ints) -> torch.Tensor:
        return torch.from_numpy(values).to(self._device)


def in_order(place: Ints, rows: int) -> bool:
    """Whether these are all of a batch's rows, in order."""
    return len(place) == rows and bool((place == np.arange(rows)).all())


def _similar(parts: list[tuple[Context, Ints]]) -> list[list[tuple[Context, Ints]]]:
    """Split into lists whose contexts, and whose numbers of rows, are near enough to be padded together."""
    parts.sort(key=lambda part: (len(part[1]) > 32, len(part[0].committed)))
    groups: list[list[tuple[Context, Ints]]] = []
    for part in parts:
        if groups and _fits(groups[-1][0], part):
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _fits(smallest: tuple[Context, Ints], part: tuple[Context, Ints]) -> bool:
    few = max(len(smallest[1]), len(part[1])) <= 32
    return few and len(part[0].committed) <= _PAD_SLACK * len(smallest[0].committed) + 32


def _bias(visible: Bools, repeats: int, like: torch.Tensor) -> torch.Tensor:
    mask = torch.from_numpy(visible).to(like.device)
    bias = torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(~mask, float("-inf"))
    return bias.repeat_interleave(repeats, dim=1)[:, None] if repeats > 1 else bias[:, None]
