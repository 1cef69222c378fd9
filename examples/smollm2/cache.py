"""K and V of many texts that grow together, kept where they are: what a transformers model takes for cache and mask.

`DynamicCache` copies all of a cache at every step, and transformers' attention copies it again for every query head
that shares a KV head; on a CPU the two cost more than the model. As in `pipedec.model.attention`, the cache travels
as the attention mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "pipedec-distillation"


class GrowingCache:
    """Room for `length` tokens of each text. `hidden` [texts, width] marks the padding between them."""

    def __init__(self, layers: int, length: int, hidden: torch.Tensor) -> None:
        self._layers: list[list[torch.Tensor]] = [[] for _ in range(layers)]  # K and V of each
        self._hidden = pad(hidden, (0, length - hidden.shape[1]))
        self._length = length
        self.size = 0  # tokens of each text that all layers hold

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [texts, kv_heads, new, head_dim]; returns all that there is by now."""
        kept = self._layers[layer_idx]
        texts, heads, new, width = keys.shape
        if not kept:
            kept.extend(keys.new_empty(texts, heads, self._length, width) for _ in range(2))
        for room, added in zip(kept, (keys, values), strict=True):
            room[:, :, self.size : self.size + new] = added
        return kept[0][:, :, : self.size + new], kept[1][:, :, : self.size + new]

    def expand(self, texts: int) -> None:
        """The one text that it holds begins this many."""
        for kept in self._layers:
            kept[:] = [tensor.expand(texts, -1, -1, -1).contiguous() for tensor in kept]

    def keep(self, texts: torch.Tensor) -> None:
        """Go on with the texts of these indices alone."""
        for kept in self._layers:
            kept[:] = [tensor[texts] for tensor in kept]
        self._hidden = self._hidden[texts]

    def bias(self, texts: int, new: int, dtype: torch.dtype) -> torch.Tensor:
        """[texts, 1, new, size + new] to add to the scores of tokens that come next, of the first `texts` texts."""
        seen = torch.arange(self.size + new, device=self._hidden.device)
        asking = seen[self.size :, None]
        hidden = self._hidden[:texts, None, : self.size + new] | (seen > asking)
        hidden &= seen != asking  # padding sees itself, lest its softmax be over nothing
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, -torch.inf)[:, None]


def grouped_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: Any,
    scaling: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """The function transformers calls: the query heads that share a KV head become rows of one head."""
    texts, heads, new, head_dim = query.shape
    kv_heads = key.shape[1]
    bias = attention_mask.repeat(1, 1, heads // kv_heads, 1)
    folded = query.reshape(texts, kv_heads, -1, head_dim)
    output = scaled_dot_product_attention(folded, key, value, bias, scale=scaling)
    return output.view(texts, heads, new, head_dim).transpose(1, 2), None


AttentionInterface.register(ATTENTION, grouped_attention)
