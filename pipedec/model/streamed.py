"""Linear layers of CUDA devices: few rows go through `skinny_product`, or with 8-bit weights through that of
`quantized_product`, once for layers that are given the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.functional import linear as any_product

from pipedec.model import quantized_product
from pipedec.model.quantized import EightBitLinear
from pipedec.model.skinny_product import MAX_ROWS, fits, skinny_product
from pipedec.model.triton_device import has_tensor_cores
from pipedec.quantization import BLOCK

# What transformers calls layers that are given the same rows, in the order in which they are asked.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def stream(modules: Iterable[nn.Module]) -> None:
    """Let every linear layer in these modules, if it fits, compute so; on a T4 or V100 cuBLAS's products are better."""
    for module in modules:
        for parent in module.modules():
            for names in _SIBLINGS:
                siblings = [layer for name in names if _is_streamable(layer := getattr(parent, name, None))]
                if len(siblings) == len(names):
                    _join(siblings)
        for layer in module.modules():
            if _is_streamable(layer):
                # As an attribute of the instance, not a new module: what others know of the layer stays true.
                layer.forward = _forward(layer)  # type: ignore[method-assign, assignment]
    torch.cuda.empty_cache()  # of what joint weights were made of


def _is_streamable(layer: object) -> TypeGuard[nn.Linear]:
    """Not so if it is already: a span may be run by one executor after another."""
    if not isinstance(layer, nn.Linear) or "forward" in vars(layer):
        return False
    if type(layer) is EightBitLinear:  # also without tensor cores: else it would be dequantized at every step
        return layer.dtype in quantized_product.DTYPES
    return type(layer) is nn.Linear and fits(layer.weight) and has_tensor_cores(layer.weight.device)


def _forward(layer: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer's forward. It does not hold the layer, which would then outlive its last user."""
    weight, scale, bias = layer.weight, _scale(layer), layer.bias
    return lambda rows: _product(rows, weight, scale, bias)


def _scale(layer: nn.Linear) -> torch.Tensor | None:
    """Those of a layer with 8-bit weights."""
    return layer.scale if isinstance(layer, EightBitLinear) else None


def _join(layers: Sequence[nn.Linear]) -> None:
    """One product for all of them. Their weights become parts of one, which is in memory once."""
    scales = [scale for layer in layers if (scale := _scale(layer)) is not None]
    if len({(layer.bias is None, layer.in_features, layer.weight.dtype) for layer in layers}) > 1:
        return
    widths = [layer.out_features for layer in layers]
    by_block = {scale.ndim == 2 for scale in scales}
    if len(by_block) > 1 or (True in by_block and any(width % BLOCK for width in widths[:-1])):
        return  # a block's rows are of one layer
    weight = _joined([layer.weight for layer in layers], lambda layer, part: setattr(layer, "weight", part), layers)
    scale = _joined(scales, lambda layer, part: setattr(layer, "scale", part), layers) if scales else None
    bias = None if layers[0].bias is None else torch.cat([layer.bias.detach() for layer in layers])
    joint = _Joint(weight, scale, bias, widths)
    for index, layer in enumerate(layers):
        layer.forward = _part_of(joint, index)  # type: ignore[method-assign, assignment]


def _joined(
    parts: Sequence[torch.Tensor], give: Callable[[nn.Linear, nn.Parameter], None], layers: Sequence[nn.Linear]
) -> torch.Tensor:
    """The parts as one tensor; each layer is given its own part of it."""
    dtype = parts[0].dtype
    numbers = torch.int8 if dtype == torch.float8_e4m3fn else dtype  # not every build joins those as what they are
    joined = torch.cat([part.detach().view(numbers) for part in parts]).view(dtype)
    for layer, part in zip(layers, torch.split(joined, [len(part) for part in parts]), strict=True):
        give(layer, nn.Parameter(part, requires_grad=False))
    return joined


def _part_of(joint: _Joint, index: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda rows: joint.part(index, rows)


class _Joint:
    """Layers that are given the same rows. The first that is asked computes for all, the last takes what is left."""

    def __init__(
        self, weight: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None, widths: Sequence[int]
    ) -> None:
        self._weight, self._scale, self._bias, self._widths = weight, scale, bias, list(widths)
        self._rows: torch.Tensor | None = None
        self._parts: Sequence[torch.Tensor] = ()

    def part(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        """What layer `index` makes of the rows."""
        if rows is not self._rows:
            self._rows = rows
            self._parts = torch.split(_product(rows, self._weight, self._scale, self._bias), self._widths, -1)
        made = self._parts[index]
        if index == len(self._widths) - 1:
            self._rows, self._parts = None, ()
        return made


def _product(
    rows: torch.Tensor, weight: torch.Tensor, scale: torch.Tensor | None, bias: torch.Tensor | None
) -> torch.Tensor:
    if scale is not None:
        return quantized_product.eight_bit_product(rows, weight, scale, bias)
    columns, depth = weight.shape
    if rows.numel() // depth > MAX_ROWS:
        return any_product(rows, weight, bias)
    product: torch.Tensor = skinny_product(rows.reshape(-1, depth), weight)
    product = product.view(*rows.shape[:-1], columns)
    return product if bias is None else product + bias
