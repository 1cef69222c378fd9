"""How the weights of a checkpoint's linear layers may be stored."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# What shares a scale: a tensor, one output, 128 x 128 numbers, some that follow each other of one output.
Strategy = Literal["tensor", "channel", "block", "group"]
# In what order eight 4-bit numbers lie in 32 bits, and how zeros are written.
Packing = Literal["compressed-tensors", "gptq", "gptq_v2", "awq"]
BLOCK = 128
PIECE_NUMBERS = 1 << 27  # of quantised weights that a GPU makes what they stand for at once, for a batch of many rows
FLOAT8, INT8, PACKED = "F8_E4M3", "I8", "I32"  # as safetensors calls them; the last holds eight 4-bit numbers
# Of tensors that are no parameters.
SCALE_ENDINGS = ("_scale", "_scale_inv", "_zero_point", "_g_idx", ".weight_shape", ".scales", ".qzeros", ".g_idx")


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a linear layer's weight is stored: safetensors' dtype, and what may share a scale. 4-bit weights also have a
    `packing`, the size of their `group` (None: all numbers of an output), and `zeros` unless they are symmetric."""

    dtype: str
    strategies: tuple[Strategy, ...]
    packing: Packing | None = None
    group: int | None = None
    zeros: bool = False

    @property
    def bits(self) -> int:
        """Of a number."""
        return 8 if self.packing is None else 4


@dataclass(frozen=True, slots=True)
class Quantization:
    """Which linear layers have quantised weights. `scale_names`: what the tensor of scales may be called beside an
    8-bit `weight`; `targets`, the first that matches decides, match names of modules from their beginning, as `ignored`
    do; None leaves a module out."""

    method: str
    scale_names: tuple[str, ...]
    targets: tuple[tuple[re.Pattern[str], Scheme | None], ...]
    ignored: tuple[re.Pattern[str], ...]

    def scheme(self, module: str) -> Scheme | None:
        """That of the linear layer of this name; None if its weight is stored as it is."""
        if any(pattern.match(module) for pattern in self.ignored):
            return None
        return next((scheme for pattern, scheme in self.targets if pattern.match(module)), None)
