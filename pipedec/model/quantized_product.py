"""Products of rows with 8-bit weights on CUDA devices: Triton kernels that read a byte for each number.

A weight is its number times its scale in float32, rounded to the rows' dtype, as `quantized.dequantized` makes it. Few
rows take the weights in a stream, as in `skinny_product`: their bits depend on no other row. For more, a piece of the
weights at a time is made what it stands for, and multiplied by PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.nn.functional import linear as any_product

from pipedec.model.skinny_product import LEAST_ROWS, MAX_ROWS, PROGRAMS
from pipedec.model.triton_device import shared_memory, upcast
from pipedec.quantization import BLOCK, PIECE_NUMBERS

DTYPES = (torch.bfloat16, torch.float16)  # of rows
TILE = (32, BLOCK)  # of weights that one program makes what they stand for
# Columns of a program, numbers of each that it multiplies at once (of a block or two), and pieces that it has on their
# way where shared memory holds them.
_MANY, _FEW = (64, BLOCK, 4), (16, 2 * BLOCK, 8)

# Of a number in float8_e4m3fn, moved by 20 bits, these are float32's sign, exponent but for 120, and first digits.
_BITS = tl.constexpr(-0x78100000)  # 0x87F00000
_BIAS = tl.constexpr(2.0**120)


def shape(rows: int, columns: int, depth: int, item_bytes: int, shared: int) -> dict[str, int | bool]:
    """How to launch the kernel where a program has `shared` bytes of shared memory."""
    width, piece, most = _MANY if columns >= PROGRAMS * _MANY[0] else _FEW
    height = max(LEAST_ROWS, triton.next_power_of_2(rows))
    stages = min(most, 1 + (shared - item_bytes * piece * width) // (piece * (width + item_bytes * height)))
    even = columns % width == 0 and depth % piece == 0
    return {"ROWS": height, "COLUMNS": width, "PIECE": piece, "EVEN": even, "num_warps": 4, "num_stages": stages}


def eight_bit_product(
    rows: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Any rows [..., depth], with 8-bit weights [columns, depth] times their scales ([columns], or one of each block):
    [..., columns]."""
    columns, depth = values.shape
    if rows.numel() // depth <= MAX_ROWS:
        product: torch.Tensor = skinny_eight_bit_product(rows.reshape(-1, depth), values, scale)
        product = product.view(*rows.shape[:-1], columns)
    else:
        step = max(BLOCK, PIECE_NUMBERS // depth // BLOCK * BLOCK)
        per = 1 if scale.ndim == 1 else BLOCK
        parts = [
            any_product(rows, stood_for(values[at : at + step], scale[at // per : (at + step) // per], rows.dtype))
            for at in range(0, columns, step)
        ]
        product = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return product if bias is None else product + bias


@torch.library.custom_op("pipedec::skinny_eight_bit_product", mutates_args=())
def skinny_eight_bit_product(rows: torch.Tensor, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Rows [rows, depth] in one of `DTYPES`, up to MAX_ROWS: [rows, columns]."""
    count, depth = rows.shape
    columns = values.shape[0]
    output = rows.new_empty(count, columns)
    if not count:
        return output
    sizes = shape(count, columns, depth, rows.element_size(), shared_memory(rows.device))
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]  # Triton launches on the current one
        _eight_bit_product[(triton.cdiv(columns, sizes["COLUMNS"]),)](
            rows.contiguous(),
            _bytes(values),
            scale,
            output,
            count,
            columns,
            depth,
            triton.cdiv(depth, BLOCK),
            FLOAT=values.dtype.is_floating_point,
            BLOCK=0 if scale.ndim == 1 else BLOCK,
            UPCAST=upcast(rows.dtype),
            **sizes,
        )
    return output


@skinny_eight_bit_product.register_fake
def _like_output(rows: torch.Tensor, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], values.shape[0])


@torch.library.custom_op("pipedec::stood_for", mutates_args=())
def stood_for(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What 8-bit weights [columns, depth] stand for, in `dtype`."""
    columns, depth = values.shape
    output = torch.empty_like(values, dtype=dtype)
    with torch.cuda.device_of(values):  # type: ignore[no-untyped-call]
        _stood_for[(triton.cdiv(columns, TILE[0]), triton.cdiv(depth, TILE[1]))](
            _bytes(values),
            scale,
            output,
            columns,
            depth,
            triton.cdiv(depth, BLOCK),
            FLOAT=values.dtype.is_floating_point,
            BLOCK=0 if scale.ndim == 1 else BLOCK,
            ROWS=TILE[0],
            WIDTH=TILE[1],
        )
    return output


@stood_for.register_fake
def _like_values(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty_like(values, dtype=dtype)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    """Devices before compute capability 8.9 know no float8: kernels take it apart themselves."""
    return values.view(torch.int8)


@triton.jit  # type: ignore[untyped-decorator]
def _numbers(raw, factor, FLOAT: tl.constexpr):  # type: ignore[no-untyped-def]
    """Float32 numbers times `factor`, which `_factor` made of their scale."""
    if FLOAT:
        bits = (raw.to(tl.int32) << 20) & _BITS
        return bits.to(tl.float32, bitcast=True) * factor
    return raw.to(tl.float32) * factor


@triton.jit  # type: ignore[untyped-decorator]
def _factor(scale, FLOAT: tl.constexpr):  # type: ignore[no-untyped-def]
    if FLOAT:
        return scale * _BIAS
    return scale


@triton.jit(do_not_specialize=("count",))  # type: ignore[untyped-decorator]
def _eight_bit_product(  # type: ignore[no-untyped-def]
    rows,
    values,
    scale,
    output,
    count,
    columns,
    depth,
    blocks,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIECE: tl.constexpr,
    EVEN: tl.constexpr,
    FLOAT: tl.constexpr,
    BLOCK: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Some columns of the product, summed in float32. `tl.dot` takes them for rows: there are more of them."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < columns
    values += column[:, None].to(tl.int64) * depth
    row, at = tl.arange(0, ROWS), tl.arange(0, PIECE)
    real = (row < count)[None, :]
    sums = tl.zeros([COLUMNS, ROWS], tl.float32)
    if BLOCK:
        scale += (column // BLOCK) * blocks
    else:
        factor = _factor(tl.load(scale + column, mask=there, other=0.0), FLOAT)[:, None]
    for start in range(0, depth, PIECE):
        if EVEN:
            raw = tl.load(values + (start + at)[None, :])
            x = tl.load(rows + row[None, :] * depth + (start + at)[:, None], mask=real, other=0.0)
        else:
            inside = start + at < depth
            raw = tl.load(values + (start + at)[None, :], mask=there[:, None] & inside[None, :], other=0)
            x = tl.load(rows + row[None, :] * depth + (start + at)[:, None], mask=real & inside[:, None], other=0.0)
        if BLOCK:
            block = start // BLOCK
            factor = _factor(tl.load(scale + block, mask=there, other=0.0), FLOAT)[:, None]
            if PIECE > BLOCK:
                behind = _factor(tl.load(scale + block + 1, mask=there & (block + 1 < blocks), other=0.0), FLOAT)
                factor = tl.where((at < BLOCK)[None, :], factor, behind[:, None])
        w = _numbers(raw, factor, FLOAT).to(rows.dtype.element_ty)
        if UPCAST:
            w, x = w.to(tl.float32), x.to(tl.float32)
        sums = tl.dot(w, x, sums)
    output += row[None, :] * columns + column[:, None]
    tl.store(output, sums.to(output.dtype.element_ty), mask=real & there[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _stood_for(  # type: ignore[no-untyped-def]
    values,
    scale,
    output,
    columns,
    depth,
    blocks,
    FLOAT: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A tile of weights, no wider than a block."""
    column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    there = column < columns
    scale += (column // BLOCK) * blocks + tl.program_id(1) * WIDTH // BLOCK if BLOCK else column
    factor = _factor(tl.load(scale, mask=there, other=0.0), FLOAT)
    inside = there[:, None] & (at < depth)[None, :]
    place = column[:, None].to(tl.int64) * depth + at[None, :]
    made = _numbers(tl.load(values + place, mask=inside, other=0), factor[:, None], FLOAT)
    tl.store(output + place, made.to(output.dtype.element_ty), mask=inside)
