"""Weights laid out once for a processor's matrix kernels, so that a few rows cost little more than one.

For 2 to 16 rows PyTorch's float32 product on a CPU spends most of its time laying out the weights anew. Of all products
of SmolLM2, on one thread with AVX2, 1, 2, 4, 8 and 16 rows take 34, 38, 47, 61 and 95 ms with packed weights, and 37,
63, 69, 91 and 104 without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

# What PyTorch's own compiler calls for linear layers on a CPU. Not every build has it.
_OPERATORS = ("_reorder_linear_weight", "_linear_pointwise")


def pack(modules: Iterable[nn.Module]) -> None:
    """Let every float32 linear layer on a CPU in these modules compute with packed weights; its own are given up,
    but for those that an embedding shares."""
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS):
        return
    for module in modules:
        for linear in module.modules():
            if type(linear) is nn.Linear and _is_packable(linear.weight):
                # As an attribute of the instance, not a new module: what others know of the layer stays true.
                linear.forward = _packed(linear)  # type: ignore[method-assign, assignment]
                linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)


def _is_packable(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() > 0


def _packed(linear: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer's forward. It does not hold the layer, which would then outlive its last user."""
    packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
    product, bias, width = torch.ops.mkldnn._linear_pointwise.default, linear.bias, linear.out_features

    def forward(rows: torch.Tensor) -> torch.Tensor:
        if not rows.numel():
            return rows.new_empty(*rows.shape[:-1], width)
        made: torch.Tensor = product(rows, packed, bias, "none", [], "")
        return made

    return forward
