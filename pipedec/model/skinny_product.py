"""Products of a few rows with large weights on CUDA devices: a Triton kernel that reads the weights once, in a stream.

A program computes some columns for all rows. Which, and in what order it sums, depends on the weights' shape alone: a
row's numbers are the same, to the last bit, in whatever batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from pipedec.model.triton_device import shared_memory, upcast

MAX_ROWS = 64  # beyond them products are bound by arithmetic, and cuBLAS's are better
_DTYPES = (torch.bfloat16, torch.float16)
_MANY, _FEW = (64, 128), (16, 256)  # columns of a program, and numbers of each that it multiplies at once
PROGRAMS = 96  # that keep a device's memory busy
LEAST_ROWS = 16  # of tl.dot
_STAGES = 4  # pieces that a program has on their way, where shared memory holds them


def fits(weight: torch.Tensor) -> bool:
    """Whether the kernel takes these weights [columns, depth]."""
    columns, depth = weight.shape
    return weight.dtype in _DTYPES and weight.is_contiguous() and columns % _MANY[0] == 0 and depth % _FEW[1] == 0


def shape(rows: int, columns: int, item_bytes: int, shared: int) -> dict[str, int]:
    """How to launch the kernel where a program has `shared` bytes of shared memory."""
    width, piece = _MANY if columns >= PROGRAMS * _MANY[0] else _FEW
    height = max(LEAST_ROWS, triton.next_power_of_2(rows))
    stages = min(_STAGES, 1 + shared // (item_bytes * piece * (width + height)))
    return {"ROWS": height, "COLUMNS": width, "PIECE": piece, "num_warps": 4, "num_stages": stages}


@torch.library.custom_op("pipedec::skinny_product", mutates_args=())
def skinny_product(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Rows [rows, depth], up to MAX_ROWS, with weights [columns, depth] that `fits` holds for: [rows, columns]."""
    count, depth = rows.shape
    columns = weight.shape[0]
    output = rows.new_empty(count, columns)
    if not count:
        return output
    sizes = shape(count, columns, rows.element_size(), shared_memory(rows.device))
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]  # Triton launches on the current one
        _product[(columns // sizes["COLUMNS"],)](
            rows.contiguous(),
            weight,
            output,
            count,
            columns,
            depth,
            UPCAST=upcast(rows.dtype),
            **sizes,
        )
    return output


@skinny_product.register_fake
def _like_output(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], weight.shape[0])


@triton.jit(do_not_specialize=("count",))  # type: ignore[untyped-decorator]
def _product(  # type: ignore[no-untyped-def]
    rows,
    weight,
    output,
    count,
    columns,
    depth,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIECE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Some columns of the product, summed in float32. `tl.dot` takes them for rows: there are more of them."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    weight += column[:, None].to(tl.int64) * depth
    row, at = tl.arange(0, ROWS), tl.arange(0, PIECE)
    real = (row < count)[None, :]
    sums = tl.zeros([COLUMNS, ROWS], tl.float32)
    for start in range(0, depth, PIECE):
        w = tl.load(weight + (start + at)[None, :])
        x = tl.load(rows + row[None, :] * depth + (start + at)[:, None], mask=real, other=0.0)
        if UPCAST:
            w, x = w.to(tl.float32), x.to(tl.float32)
        sums = tl.dot(w, x, sums)
    tl.store(output + row[None, :] * columns + column[:, None], sums.to(output.dtype.element_ty), mask=real)
