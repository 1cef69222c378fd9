"""K and V of many texts that grow together, kept where they are: what a transformers model takes for cache and mask.

`DynamicCache` copies all of a cache at every step, and transformers' attention copies it again for every query head
that shares a KV head; on a CPU the two cost more than the model. As in `pipedec.model.attention`, the cache travels
as the attention mask.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

ATTENTION = "pipedec-distillation"
SHOWN = 64  # for as many steps a CUDA graph serves


class GrowingCache:
    """Room for `length` tokens of each of `texts` texts, zeroed, so that what is hidden is finite.

    With `graphed`, tensors stay where they are and attention sees multiples of `SHOWN` tokens, so that a CUDA graph of
    one step can be replayed for the next.
    """

    def __init__(self, layers: int, texts: int, length: int, device: torch.device, graphed: bool) -> None:
        self._rooms: list[list[torch.Tensor]] = [[] for _ in range(layers)]  # K and V of each
        self._hidden = torch.zeros(texts, length, dtype=torch.bool, device=device)
        self._at = torch.zeros(1, dtype=torch.int64, device=device)  # `size`, where a graph finds it
        self._graphed = graphed
        self.size = 0  # tokens of each text that all layers hold

    def begin(self, hidden: torch.Tensor) -> None:
        """Start anew, with texts whose padding `hidden` [texts, width] marks."""
        self._hidden.zero_()
        self._hidden[:, : hidden.shape[1]] = hidden
        self._grow_to(0)

    @property
    def room(self) -> tuple[int, int]:
        """How many texts, and tokens of each."""
        texts, length = self._hidden.shape
        return texts, length

    def shown(self, new: int) -> int:
        """How many tokens attention sees of each text when these come."""
        end = self.size + new
        return min(-(-end // SHOWN) * SHOWN, self.room[1]) if self._graphed else end

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [texts, kv_heads, new, head_dim] (one text: to all); returns what is seen of these texts by now."""
        rooms = self._rooms[layer_idx]
        texts, heads, new, width = keys.shape
        if not rooms:
            rooms.extend(keys.new_zeros(self.room[0], heads, self.room[1], width) for _ in range(2))
        for room, added in zip(rooms, (keys, values), strict=True):
            if self._graphed and new == 1:
                room.index_copy_(2, self._at, added.expand(len(room), -1, -1, -1))
            else:
                room[:, :, self.size : self.size + new] = added
        return rooms[0][:texts, :, : self.shown(new)], rooms[1][:texts, :, : self.shown(new)]

    def added(self, new: int) -> None:
        """All layers hold this many more."""
        self._grow_to(self.size + new)

    def keep(self, texts: torch.Tensor) -> None:
        """Go on with the texts of these indices alone."""
        for rooms in self._rooms:
            rooms[:] = [room[texts] for room in rooms]
        self._hidden = self._hidden[texts]

    def bias(self, texts: int, new: int, dtype: torch.dtype) -> torch.Tensor:
        """[texts, 1, new, shown] to add to the scores of tokens that come next, of the first `texts` texts."""
        seen = torch.arange(self.shown(new), device=self._hidden.device)
        asking = (self._at + seen[:new])[:, None]
        hidden = self._hidden[:texts, None, : len(seen)] | (seen > asking)
        hidden &= seen != asking  # padding sees itself, lest its softmax be over nothing
        return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill(hidden, -torch.inf)[:, None]

    def _grow_to(self, size: int) -> None:
        self.size = size
        self._at.fill_(size)


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
    return output.reshape(texts, heads, new, head_dim).transpose(1, 2), None


AttentionInterface.register(ATTENTION, grouped_attention)
