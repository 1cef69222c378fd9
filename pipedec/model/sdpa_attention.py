"""Attention by torch's own operator, request by request as the plan of each batch says: the reference, and the
fastest on a CPU. Shapes differ from batch to batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import scaled_dot_product_attention

from pipedec.model.context import Context, Ints
from pipedec.model.kv_pool import KVPool
from pipedec.model.plan import AttentionPlan, Group, Planner

_FOLD_ROWS = 32  # with more rows than this, folding query heads into rows no longer pays on a CPU


class SdpaAttention:
    """See `pipedec.model.attention.Attention`."""

    def __init__(self, pool: KVPool) -> None:
        self._pool = pool
        self._planner = Planner(pool.num_slots, pool.device)
        self._plan = AttentionPlan(slice(0, 0), ())

    def reset(self) -> None:
        self._planner.reset()

    def poison(self, slots: Sequence[int]) -> None:
        self._planner.poison(slots)

    def begin(self, contexts: Sequence[Context], order: Ints) -> None:
        self._plan = self._planner.plan(contexts, order)

    def abandon(self, contexts: Sequence[Context]) -> None:
        self._planner.abandon(contexts)

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._pool.write(layer, self._plan.slots, keys, values)

    def attend(self, layer: int, query: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        rows, groups = query.transpose(0, 1), self._plan.groups
        if len(groups) == 1 and groups[0].rows is None:
            return _attend(rows, keys, values, groups[0], scale, window)[0]
        output = torch.empty_like(rows, memory_format=torch.contiguous_format)
        for group in groups:
            chosen = rows if group.rows is None else rows[group.rows.view(-1)]
            result = _attend(chosen, keys, values, group, scale, window).flatten(0, 1)
            if group.real is not None:
                result = result[group.real]
            output[group.scatter] = result
        return output


def _attend(
    rows: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, group: Group, scale: float, window: int | None
) -> torch.Tensor:
    """Rows [B * R, heads, head_dim] of a group -> [B, R, heads, head_dim].

    With few rows, the query heads that share a KV head become rows of one head: K and V are read once.
    """
    size, count, (kv_heads, _, head_dim) = group.size, group.num_rows, keys.shape
    keys, values = group.read(keys, values)
    heads = rows.shape[1]
    repeats = heads // kv_heads
    if count > _FOLD_ROWS and not rows.is_cuda:
        query = rows.view(size, count, heads, head_dim).transpose(1, 2)
        bias = group.bias(window, 1, rows)
        output = scaled_dot_product_attention(query, keys, values, bias, scale=scale, enable_gqa=repeats > 1)
        return output.transpose(1, 2)
    query = rows.reshape(size, count, kv_heads, repeats, head_dim).transpose(1, 2)
    query = query.reshape(size, kv_heads, count * repeats, head_dim)
    output = scaled_dot_product_attention(query, keys, values, group.bias(window, repeats, rows), scale=scale)
    output = output.view(size, kv_heads, count, repeats, head_dim).transpose(1, 2)
    return output.reshape(size, count, heads, head_dim)
