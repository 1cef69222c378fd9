"""Linear layers whose weights stay in 8 or 4 bits, each number times its scale."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import linear as any_product

from pipedec.model.four_bits import MIDDLE, halves
from pipedec.quantization import BLOCK

MOST_SCALE = 256.0  # below which every scale lies: kernels multiply it by 2 ** 120
_PIECE = 1 << 22  # numbers of a weight that are made float32 at once
_NAN = 0x7F  # of float8_e4m3fn, whatever the sign


class QuantizedLinear(nn.Linear):
    """A linear layer that computes with `dequantized(weight, scale, dtype, zero)`, and holds 8 or 4 bits of each number.

    `weight` is float8_e4m3fn or int8 [out, in], and `scale` float32, [out] or one of each block of 128 x 128 numbers;
    or it is uint8 [out, in / 2], two 4-bit numbers to a byte, the first in the lower half, `scale` [out, groups] in any
    floating dtype, and `zero` uint8 [out, groups], or None where every zero is 8.
    """

    def __init__(
        self,
        like: nn.Linear,
        weight: torch.dtype,
        scale_shape: tuple[int, ...],
        dtype: torch.dtype | None = None,
        *,
        scale_dtype: torch.dtype = torch.float32,
        zeros: bool = False,
    ) -> None:
        """With room for the weights of such a layer, on its device; `dtype`, else that layer's, is what it computes
        in."""
        nn.Module.__init__(self)
        device, self.dtype = like.weight.device, dtype or like.weight.dtype
        self.in_features, self.out_features, self.bias = like.in_features, like.out_features, like.bias
        width = like.in_features // 2 if weight == torch.uint8 else like.in_features
        self.weight = _room(weight, (like.out_features, width), device)
        self.scale = _room(scale_dtype, scale_shape, device)
        self.zero = _room(torch.uint8, scale_shape, device) if zeros else None

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return any_product(rows, dequantized(self.weight, self.scale, self.dtype, self.zero), self.bias)

    def plain(self) -> nn.Linear:
        """The same layer with weights of its dtype."""
        layer = nn.Linear(self.in_features, self.out_features, bias=False, device="meta")
        made = dequantized(self.weight, self.scale, self.dtype, self.zero)
        layer.weight = nn.Parameter(made, requires_grad=False)
        layer.bias = self.bias
        return layer


def _room(dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape, dtype=dtype, device=device), requires_grad=False)


def dequantized(
    values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, zero: torch.Tensor | None = None
) -> torch.Tensor:
    """What stored weights stand for, [out, in]: each number, of 4-bit ones less its zero, times its scale in float32,
    rounded to `dtype`. A new tensor, and not much memory beside it. The arguments are as in `QuantizedLinear`."""
    rows, width = values.shape
    made = values.new_empty((rows, 2 * width if values.dtype == torch.uint8 else width), dtype=dtype)
    for start, end in _pieces(made):
        if values.dtype == torch.uint8:
            part = halves(values[start:end]).float()
            groups = part.view(len(part), scale.shape[1], -1)
            groups -= MIDDLE if zero is None else zero[start:end, :, None]
            groups *= scale[start:end, :, None].float()
        elif scale.ndim == 1:
            part = values[start:end].float()
            part *= scale[start:end, None]
        else:
            part = values[start:end].float()
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
        by_block = layer.scale.ndim == 2 and layer.weight.dtype != torch.uint8
        scale = layer.scale[: -(-rows // BLOCK) if by_block else rows]
        zero = None if layer.zero is None else layer.zero[:rows]
        return dequantized(layer.weight[:rows], scale, layer.dtype, zero)
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
