"""Attention over the KV pool, as transformers' own layers call it.

The cache object stores each layer's K and V in the rows' slots; the attention function, registered with transformers,
then reads what the plan says. The plan reaches it as the `attention_mask`, the one argument that every family's
layers hand through untouched: it is a mask, in another form.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from pipedec.errors import ModelError
from pipedec.model.kv_pool import KVPool
from pipedec.model.plan import AttentionPlan, Group

ATTENTION = "pipedec"
_FOLD_ROWS = 32  # with more rows than this, folding query heads into rows no longer pays on a CPU
_IGNORED = {"position_ids", "use_cache", "is_causal", "output_attentions", "position_embeddings"}


class PoolCache:
    """What a span's layers take for their KV cache: it writes to the pool, and is the mask that reads from it."""

    def __init__(self, pool: KVPool, first_layer: int) -> None:
        self._pool = pool
        self._first_layer = first_layer
        self.plan: AttentionPlan | None = None

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store [1, kv_heads, rows, head_dim] at the rows' slots."""
        assert self.plan is not None
        layer = layer_idx - self._first_layer
        self._pool.write(layer, self.plan.slots, keys[0], values[0])
        return keys, values

    def attend(self, query: torch.Tensor, layer_idx: int, scale: float | None, window: int | None) -> torch.Tensor:
        """Query [1, heads, rows, head_dim] -> output [1, rows, heads, head_dim]."""
        assert self.plan is not None
        layer = layer_idx - self._first_layer
        keys, values = self._pool.keys[layer], self._pool.values[layer]
        rows = query[0].transpose(0, 1)
        if len(self.plan.groups) == 1 and self.plan.groups[0].rows is None:
            return _attend(rows, keys, values, self.plan.groups[0], scale, window)
        output = torch.empty_like(rows, memory_format=torch.contiguous_format)
        for group in self.plan.groups:
            chosen = rows if group.rows is None else rows[group.rows.view(-1)]
            result = _attend(chosen, keys, values, group, scale, window).flatten(0, 1)
            if group.real is not None:
                result = result[group.real]
            output[group.scatter] = result
        return output[None]


def _attend(
    rows: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    group: Group,
    scale: float | None,
    window: int | None,
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


def pool_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **extra: Any,
) -> tuple[torch.Tensor, None]:
    """The function transformers calls. An argument that it does not know would change the result: it is refused."""
    unknown = [name for name, given in extra.items() if given is not None and name not in _IGNORED]
    if unknown or dropout:
        raise ModelError(
            f"{type(module).__name__} gives attention an argument that is not run: {(unknown or ['dropout'])[0]!r}"
        )
    if not isinstance(attention_mask, PoolCache):
        raise ModelError(f"{type(module).__name__} does not hand the attention mask to its attention unchanged")
    return attention_mask.attend(query, int(module.layer_idx), scaling, sliding_window), None  # type: ignore[arg-type]


AttentionInterface.register(ATTENTION, pool_attention)
