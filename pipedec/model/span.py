"""A contiguous span of a model's layers, in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from pipedec.model.architecture import Architecture


@dataclass(frozen=True, eq=False)
class Span:
    """Layers [start, end) of a model, with its embedding if `first` and its norm and LM head if `last`.

    What lies outside stays on the meta device.
    """

    architecture: Architecture
    span: tuple[int, int]
    first: bool
    last: bool
    dtype: torch.dtype
    device: torch.device
    max_context: int  # tokens of one request

    @property
    def layers(self) -> Sequence[nn.Module]:
        return list(self.architecture.layers[self.span[0] : self.span[1]])

    @property
    def vocab_size(self) -> int:
        return int(self.architecture.lm.config.vocab_size)

    @property
    def hidden_size(self) -> int:
        """Last dimension of the activation between stages."""
        return int(self.architecture.lm.config.hidden_size)

    @property
    def kv_shape(self) -> tuple[int, int]:
        """KV heads, and the dimension of each."""
        config = self.architecture.lm.config
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        return getattr(config, "num_key_value_heads", None) or heads, head_dim
