"""Linear layers whose weights stay in 8 or 4 bits, each number times its scale."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import linear as any_product

from pipedec.model.four_bits import halves, separated
from pipedec.quantization import BLOCK

MOST_SCALE = 256.0  # below which every scale lies: kernels multiply it by 2 ** 120
_PIECE = 1 << 22  # numbers of a weight that are made float32 at once
_NAN = 0x7F  # of float8_e4m3fn, whatever the sign


class QuantizedLinear(nn.Linear):
    """A linear layer that computes with `dequantized(weight, scale, dtype)`, and holds 8 or 4 bits of each number.

    `weight` [out, in] is float8_e4m3fn or int8; `scale` is float32, [out] or one of each block of 128 x 128 numbers. In
    4 bits `weight` is uint8 [out, in / 2] and `scale` float32 [out, groups] with zeros, both as in `four_bits`.
    """

    def __init__(
        self, like: nn.Linear, weight: torch.dtype, scale_shape: tuple[int, ...], dtype: torch.dtype | None = None
    ) -> None:
        """With room for the weights of such a layer, on its device; `dtype`, else that layer's, is what it computes
        in."""
        nn.Module.__init__(self)
        device, self.dtype = like.weight.device, dtype or like.weight.dtype
        self.in_features, self.out_features, self.bias = like.in_features, like.out_features, like.bias
        shape = like.out_features, like.in_features // numbers_of(weight)
        self.weight = nn.Parameter(torch.empty(shape, dtype=weight, device=device), requires_grad=False)
        self.scale = nn.Parameter(torch.empty(scale_shape, dtype=torch.float32, device=device), requires_grad=False)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return any_product(rows, dequantized(self.weight, self.scale, self.dtype), self.bias)

    def plain(self) -> nn.Linear:
        """The same layer with weights of its dtype."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        layer.weight = nn.Parameter(dequantized(self.weight, self.scale, self.dtype), requires_grad=False)
        layer.bias = self.bias
        return layer


def numbers_of(dtype: torch.dtype) -> int:
    """How many numbers an element of a stored weight is."""
    return 2 if dtype == torch.uint8 else 1


def outputs_of(values: torch.Tensor, scale: torch.Tensor) -> int:
    """How many outputs of a stored weight share a scale."""
    return BLOCK if scale.ndim == 2 and numbers_of(values.dtype) == 1 else 1


def dequantized(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What stored weights stand for, [out, in]: each number, of 4-bit ones less its zero, times its scale in float32,
    rounded to `dtype`. A new tensor, and not much memory beside it. `values` and `scale` are as in `QuantizedLinear`.
    """
    rows, width = values.shape
    made = values.new_empty((rows, width * numbers_of(values.dtype)), dtype=dtype)
    for start, end in _pieces(made):
        part = values[start:end]
        if values.dtype == torch.uint8:
            part = halves(part).float()
            factor, zero = separated(scale[start:end])
            part.view(*factor.shape, -1).sub_(zero[:, :, None]).mul_(factor[:, :, None])
        elif scale.ndim == 1:
            part = part.float().mul_(scale[start:end, None])
        else:
            part = part.float()
            _scale_blocks(part, scale[start // BLOCK : -(-end // BLOCK)])
        made[start:end] = part
    return made


def is_finite(values: torch.Tensor, scale: torch.Tensor) -> bool:
    """Whether weights stored so are numbers, and their scales below `MOST_SCALE`."""
    if not bool((scale.abs() < MOST_SCALE).all()):
        return False
    if values.dtype != torch.float8_e4m3fn:
        return True
    codes = values.view(torch.uint8)
    return not any(bool((codes[start:end] & _NAN == _NAN).any()) for start, end in _pieces(values))


def make_plain(module: nn.Module) -> None:
    """Give every layer within that has quantised weights ones of its dtype."""
    for name, child in list(module.named_modules()):
        if isinstance(child, QuantizedLinear):
            module.set_submodule(name, child.plain())


def linear_weight(layer: nn.Module, rows: int) -> torch.Tensor:
    """The first `rows` rows of a linear layer's weight, in its dtype."""
    if isinstance(layer, QuantizedLinear):
        scale = layer.scale[: -(-rows // outputs_of(layer.weight, layer.scale))]
        return dequantized(layer.weight[:rows], scale, layer.dtype)
    return layer.get_parameter("weight")[:rows]


def _scale_blocks(part: torch.Tensor, scale: torch.Tensor) -> None:
    """Multiply float32 rows, which begin with a block's first, by the scales of their blocks, in place."""
    rows = scale.repeat_interleave(BLOCK, 0)[: len(part)]
    whole = part.shape[1] // BLOCK
    part[:, : whole * BLOCK].view(len(part), whole, BLOCK).mul_(rows[:, :whole, None])
    part[:, whole * BLOCK :].mul_(rows[:, whole:])


def _pieces(values: torch.Tensor) -> Iterator[tuple[int, int]]:
    rows, width = values.shape
    step = max(BLOCK, _PIECE // width // BLOCK * BLOCK)
    return ((start, min(start + step, rows)) for start in range(0, rows, step))
