"""Checkpoints with 8-bit and 4-bit weights: what the `quantization_config` of a config.json says of them. Pure.

A weight is a stored number, less its zero where it has one, times its scale. Four methods are known: `fp8`, with a
scale for each block of 128 x 128 numbers or for each tensor; `compressed-tensors`, where each number has a byte of its
own, with a scale for each tensor, each output or each block, or half a byte, with a scale for each output or each group
of an output's numbers; `gptq` and `awq`, in half a byte and groups. All others are refused by name. What a config says
of activations changes nothing: they are never quantised.
"""

from pipedec.quantization.reading import read_quantization
from pipedec.quantization.scheme import (
    BLOCK,
    FLOAT8,
    INT8,
    PACKED,
    PIECE_NUMBERS,
    SCALE_ENDINGS,
    Packing,
    Quantization,
    Scheme,
    Strategy,
)

__all__ = [
    "BLOCK",
    "FLOAT8",
    "INT8",
    "PACKED",
    "PIECE_NUMBERS",
    "SCALE_ENDINGS",
    "Packing",
    "Quantization",
    "Scheme",
    "Strategy",
    "read_quantization",
]
