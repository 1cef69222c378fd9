"""K and V of a batch's rows into the KV pool, both in one Triton kernel, where a table on the device says."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pipedec.model.table import Column

_SLOT = tl.constexpr(int(Column.SLOT))


@torch.library.custom_op("pipedec::store_in_pool", mutates_args=("key_pool", "value_pool"))
def store_in_pool(
    key_pool: torch.Tensor,
    value_pool: torch.Tensor,
    layer: int,
    table: torch.Tensor,
    rows_stride: int,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> None:
    """Keep [kv_heads, rows, head_dim] of one layer where a table says that has so many rows. Takes all layers' pools:
    a compiler would copy what is changed through a view."""
    kv_heads, rows, head_dim = keys.shape
    key_pool, value_pool = key_pool[layer], value_pool[layer]
    keys, values = (part if part.stride(2) == 1 else part.contiguous() for part in (keys, values))
    with torch.cuda.device_of(keys):  # type: ignore[no-untyped-call]  # Triton launches on the current one
        _store_row[(rows, kv_heads)](
            key_pool,
            value_pool,
            table,
            keys,
            values,
            key_pool.stride(0),
            key_pool.stride(1),
            keys.stride(0),
            keys.stride(1),
            values.stride(0),
            values.stride(1),
            rows_stride,
            DIM=head_dim,
            DIM_PADDED=triton.next_power_of_2(head_dim),
            num_warps=1,
        )


@triton.jit(do_not_specialize=("rows_stride",))  # type: ignore[untyped-decorator]
def _store_row(  # type: ignore[no-untyped-def]
    key_pool,
    value_pool,
    table,
    keys,
    values,
    pool_head_stride,
    pool_slot_stride,
    key_head_stride,
    key_row_stride,
    value_head_stride,
    value_row_stride,
    rows_stride,
    DIM: tl.constexpr,
    DIM_PADDED: tl.constexpr,
):
    """K and V of one row and KV head."""
    row, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    slot = tl.load(table + _SLOT * rows_stride + row).to(tl.int64)
    dim = tl.arange(0, DIM_PADDED)
    inside = dim < DIM
    place = head * pool_head_stride + slot * pool_slot_stride + dim
    k = tl.load(keys + head * key_head_stride + row * key_row_stride + dim, mask=inside)
    v = tl.load(values + head * value_head_stride + row * value_row_stride + dim, mask=inside)
    tl.store(key_pool + place, k, mask=inside)
    tl.store(value_pool + place, v, mask=inside)
