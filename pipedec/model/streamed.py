"""Linear layers of CUDA devices: few rows go through `skinny_product`, or with quantised weights through that of
`quantized_product`, once for layers that are given the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeGuard

import torch
from torch import nn
from torch.nn.functional import linear as any_product

from pipedec.model import quantized_product
from pipedec.model.quantized import QuantizedLinear, outputs_of
from pipedec.model.skinny_product import MAX_ROWS, fits, skinny_product
from pipedec.model.triton_device import has_tensor_cores

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
    if type(layer) is QuantizedLinear:  # also without tensor cores: else it would be dequantized at every step
        return layer.dtype in quantized_product.DTYPES
    return type(layer) is nn.Linear and fits(layer.weight) and has_tensor_cores(layer.weight.device)


class _Weights(NamedTuple):
    """What a product is with; `scale` is that of quantised weights."""

    weight: torch.Tensor
    scale: torch.Tensor | None
    bias: torch.Tensor | None

    @classmethod
    def of(cls, layer: nn.Linear) -> _Weights:
        return cls(layer.weight, layer.scale if isinstance(layer, QuantizedLinear) else None, layer.bias)

    def alike(self) -> tuple[object, ...]:
        """What must be the same of layers that are joined: all but the number of outputs."""
        return tuple((part.dtype, part.shape[1:]) if part is not None else None for part in self)


def _forward(layer: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer's forward. It does not hold the layer, which would then outlive its last user."""
    weights = _Weights.of(layer)
    return lambda rows: _product(rows, weights)


def _join(layers: Sequence[nn.Linear]) -> None:
    """One product for all of them. Their weights become parts of one, which is in memory once."""
    found = [_Weights.of(layer) for layer in layers]
    if len({each.alike() for each in found}) > 1:
        return
    widths = [layer.out_features for layer in layers]
    weight, scale, bias = found[0]
    if scale is not None and any(width % outputs_of(weight, scale) for width in widths[:-1]):
        return  # a block's rows are of one layer
    joint = _Joint(
        _Weights(
            _joined("weight", layers),
            None if scale is None else _joined("scale", layers),
            None if bias is None else torch.cat([layer.bias.detach() for layer in layers]),
        ),
        widths,
    )
    for index, layer in enumerate(layers):
        layer.forward = _part_of(joint, index)  # type: ignore[method-assign, assignment]


def _joined(name: str, layers: Sequence[nn.Linear]) -> torch.Tensor:
    """This parameter of the layers as one tensor; each layer is given its own part of it."""
    parts = [layer.get_parameter(name).detach() for layer in layers]
    dtype = parts[0].dtype
    numbers = torch.int8 if dtype == torch.float8_e4m3fn else dtype  # not every build joins those as what they are
    joined = torch.cat([part.view(numbers) for part in parts]).view(dtype)
    for layer, part in zip(layers, torch.split(joined, [len(part) for part in parts]), strict=True):
        setattr(layer, name, nn.Parameter(part, requires_grad=False))
    return joined


def _part_of(joint: _Joint, index: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda rows: joint.part(index, rows)


class _Joint:
    """Layers that are given the same rows. The first that is asked computes for all, the last takes what is left."""

    def __init__(self, weights: _Weights, widths: Sequence[int]) -> None:
        self._weights, self._widths = weights, list(widths)
        self._rows: torch.Tensor | None = None
        self._parts: Sequence[torch.Tensor] = ()

    def part(self, index: int, rows: torch.Tensor) -> torch.Tensor:
        """What layer `index` makes of the rows."""
        if rows is not self._rows:
            self._rows = rows
            self._parts = torch.split(_product(rows, self._weights), self._widths, -1)
        made = self._parts[index]
        if index == len(self._widths) - 1:
            self._rows, self._parts = None, ()
        return made


def _product(rows: torch.Tensor, weights: _Weights) -> torch.Tensor:
    weight, scale, bias = weights
    if scale is not None:
        return quantized_product.quantized_linear(rows, weight, scale, bias)
    columns, depth = weight.shape
    if rows.numel() // depth > MAX_ROWS:
        return any_product(rows, weight, bias)
    product: torch.Tensor = skinny_product(rows.reshape(-1, depth), weight)
    product = product.view(*rows.shape[:-1], columns)
    return product if bias is None else product + bias
