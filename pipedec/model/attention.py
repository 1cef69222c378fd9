"""Attention over the KV pool, as transformers' own layers call it.

The cache object stores each layer's K and V in the rows' slots; the attention function, registered with transformers,
then reads what the rows attend to. Both go through one `Attention`, which reaches the function as the
`attention_mask`, the one argument that every family's layers hand through untouched: it is a mask, in another form.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn
from transformers import AttentionInterface

from pipedec.errors import ModelError
from pipedec.model.context import Context, Ints

ATTENTION = "pipedec"
_IGNORED = {"position_ids", "use_cache", "is_causal", "output_attentions", "position_embeddings"}


class Attention(Protocol):
    """One way to compute attention over a pool: what the rows of a batch see, then each layer's part of it."""

    def reset(self) -> None:
        """A new epoch: no request is open; the pool may hold anything."""

    def poison(self, slots: Sequence[int]) -> None:
        """These slots hold NaN from now on."""

    def begin(self, contexts: Sequence[Context], order: Ints) -> None:
        """The next calls are of the contexts' rows, which together are the activation rows `order`, ascending."""

    def abandon(self, contexts: Sequence[Context]) -> None:
        """Some layers did not run: what these rows' slots hold there is not theirs."""

    def store(self, layer: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Keep [kv_heads, rows, head_dim] of one layer, by its index in the span, at the rows' slots."""

    def attend(self, layer: int, query: torch.Tensor, scale: float, window: int | None) -> torch.Tensor:
        """Query [heads, rows, head_dim] -> output [rows, heads, head_dim]. A `window` hides what lies that many
        positions back, or more."""


class PoolCache:
    """What a span's layers take for their KV cache, and for their mask."""

    def __init__(self, attention: Attention, first_layer: int) -> None:
        self.attention = attention
        self._first_layer = first_layer

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Store [1, kv_heads, rows, head_dim] at the rows' slots."""
        self.attention.store(layer_idx - self._first_layer, keys[0], values[0])
        return keys, values

    def attend(self, query: torch.Tensor, layer_idx: int, scale: float | None, window: int | None) -> torch.Tensor:
        """Query [1, heads, rows, head_dim] -> output [1, rows, heads, head_dim]."""
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        return self.attention.attend(layer_idx - self._first_layer, query[0], scale, window)[None]


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
