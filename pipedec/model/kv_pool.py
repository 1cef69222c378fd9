"""Keys and values of every token in flight or committed, by slot."""

from __future__ import annotations

import torch


class KVPool:
    """Two tensors of shape [layers, slots, kv_heads, head_dim]. Nothing is ever moved."""

    def __init__(
        self, layers: int, slots: int, kv_heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.keys = torch.zeros(layers, slots, kv_heads, head_dim, dtype=dtype, device=device)
        self.values = torch.zeros_like(self.keys)

    def write(self, layer: int, slots: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Store [rows, kv_heads, head_dim] of one layer at int64 `slots` [rows]."""
        self.keys[layer].index_copy_(0, slots, keys)
        self.values[layer].index_copy_(0, slots, values)

    def poison(self, slots: torch.Tensor) -> None:
        """Fill int64 `slots` with NaN in every layer: whoever still reads them will show it."""
        self.keys.index_fill_(1, slots, float("nan"))
        self.values.index_fill_(1, slots, float("nan"))
