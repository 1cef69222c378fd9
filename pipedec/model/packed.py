"""Weights laid out once for a processor's matrix kernels, so that a few rows cost little more than one.

For 2 to 16 rows PyTorch's product on a CPU spends most of its time laying out the weights anew. A step of SmolLM2 on
one thread, for 1, 4 and 16 rows: with AVX2 in float32 34, 47 and 95 ms with packed weights, 37, 69 and 104 without
(products alone); with AVX512-BF16 in float32 48, 42 and 69, and 54, 72 and 109; in bfloat16 32, 31 and 47, and 45, 50
and 68.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable

import torch
from torch import nn

# What PyTorch's own compiler calls for linear layers on a CPU. Not every build has it.
_OPERATORS = ("_reorder_linear_weight", "_linear_pointwise")
_HAS_BFLOAT16 = "_is_mkldnn_bf16_supported"
# oneDNN, and PyTorch above it, keep what was compiled for the newest 1,024 sizes of products, half a megabyte each.
_KEPT = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "256", "LRU_CACHE_CAPACITY": "256"}


def pack(modules: Iterable[nn.Module]) -> None:
    """Let every linear layer on a CPU in these modules compute with packed weights, in float32 or, where the processor
    computes in it, in bfloat16; its own are given up, but for those that an embedding shares.

    Before the process's first product, this also sees to it that fewer compiled ones are kept.
    """
    for name, count in _KEPT.items():
        os.environ.setdefault(name, count)
    dtypes = packable_dtypes()
    for module in modules:
        for linear in module.modules():
            if type(linear) is nn.Linear and _is_packable(linear.weight, dtypes):
                # As an attribute of the instance, not a new module: what others know of the layer stays true.
                linear.forward = _packed(linear)  # type: ignore[method-assign, assignment]
                linear.weight = nn.Parameter(linear.weight.to("meta"), requires_grad=False)


def packable_dtypes() -> set[torch.dtype]:
    """What this build of PyTorch can pack weights of, for this processor."""
    operators = torch.ops.mkldnn
    available: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not available or not all(hasattr(operators, name) for name in _OPERATORS):
        return set()
    half = hasattr(operators, _HAS_BFLOAT16) and getattr(operators, _HAS_BFLOAT16)()
    return {torch.float32, torch.bfloat16} if half else {torch.float32}


def _is_packable(weight: torch.Tensor, dtypes: Collection[torch.dtype]) -> bool:
    return weight.device.type == "cpu" and weight.dtype in dtypes and weight.numel() > 0


def chained_product(rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Float32 [M, K], [N, K] -> [M, N], each number of which is one chain of K sums in their order, for K up to 256; it
    depends on no other row and no other column. Needs an operator that `has_chained_product` tells of."""
    if len(rows) == 1:
        return chained_product(rows.expand(2, -1), columns)[:1]
    if len(columns) == 1:
        return chained_product(rows, columns.expand(2, -1))[:, :1]
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise.default(rows, columns, None, "none", [], "")
    return made


def has_chained_product() -> bool:
    """Whether this build of PyTorch computes `chained_product` on this machine."""
    return bool(packable_dtypes())


def _packed(linear: nn.Linear) -> Callable[[torch.Tensor], torch.Tensor]:
    """The layer's forward. It does not hold the layer, which would then outlive its last user."""
    packed = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach())
    product, bias, width = torch.ops.mkldnn._linear_pointwise.default, linear.bias, linear.out_features
    fewest = _fewest_rows(linear.weight.dtype)

    def forward(rows: torch.Tensor) -> torch.Tensor:
        if not rows.numel():
            return rows.new_empty(*rows.shape[:-1], width)
        count = rows.numel() // rows.shape[-1]
        if count < fewest:
            padded: torch.Tensor = product(_padded(rows, count, fewest), packed, bias, "none", [], "")
            return padded[:count].view(*rows.shape[:-1], width)
        made: torch.Tensor = product(rows, packed, bias, "none", [], "")
        return made

    return forward


def _fewest_rows(dtype: torch.dtype) -> int:
    """Rows from which on a product's rows come out the same, to the last bit, however many there are. With AVX2 one row
    is computed as many are; with AVX512 it is not, and four take less time than one."""
    return 1 if dtype == torch.float32 and torch.backends.cpu.get_cpu_capability() == "AVX2" else 4


def _padded(rows: torch.Tensor, count: int, fewest: int) -> torch.Tensor:
    rows = rows.reshape(count, -1)
    return torch.cat([rows, rows[:1].expand(fewest - count, -1)])
