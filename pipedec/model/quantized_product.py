"""Products of rows with quantised weights on CUDA devices: Triton kernels that read one byte, or half, for each number.

A weight is its number, of 4-bit ones less its zero, times its scale in float32, rounded to the rows' dtype, as
`quantized.dequantized` makes it. Few rows take the weights in a stream, as in `skinny_product`: their bits depend on no
other row. For more, a piece of the weights at a time is made what it stands for, and multiplied by PyTorch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch.nn.functional import linear as any_product

from pipedec.model.four_bits import MIDDLE
from pipedec.model.skinny_product import LEAST_ROWS, MAX_ROWS, PROGRAMS
from pipedec.model.triton_device import shared_memory, upcast
from pipedec.quantization import BLOCK, PIECE_NUMBERS

DTYPES = (torch.bfloat16, torch.float16)  # of rows
TILE = (32, BLOCK)  # of weights that one program makes what they stand for
# Columns of a program, numbers of each that it multiplies at once, and pieces that it has on their way where shared
# memory holds them.
_MANY, _FEW = (64, BLOCK, 4), (16, 2 * BLOCK, 8)
INT8, FLOAT8, INT4 = 0, 1, 2  # what a number is

_FLOAT8, _INT4 = tl.constexpr(FLOAT8), tl.constexpr(INT4)
# Of a number in float8_e4m3fn, moved by 20 bits, these are float32's sign, exponent but for 120, and first digits.
_BITS = tl.constexpr(-0x78100000)  # 0x87F00000
_BIAS = tl.constexpr(2.0**120)
# A float32 with these bits and a small number in its last digits is that number more than 2 ** 23.
_LARGE_BITS, _LARGE = tl.constexpr(0x4B000000), tl.constexpr(2.0**23)
_MIDDLE = tl.constexpr(2.0**23 + MIDDLE)


def shape(rows: int, columns: int, depth: int, item_bytes: int, shared: int, bits: int = 8) -> dict[str, int | bool]:
    """How to launch the kernel where a program has `shared` bytes of shared memory, for weights of so many bits."""
    width, piece, most = _MANY if columns >= PROGRAMS * _MANY[0] else _FEW
    height = max(LEAST_ROWS, triton.next_power_of_2(rows))
    on_their_way = piece * width * bits // 8 + item_bytes * piece * height
    stages = min(most, 1 + (shared - item_bytes * piece * width) // on_their_way)
    even = columns % width == 0 and depth % piece == 0
    return {"ROWS": height, "COLUMNS": width, "PIECE": piece, "EVEN": even, "num_warps": 4, "num_stages": stages}


def kind(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, width: int) -> dict[str, int | bool]:
    """What a kernel that takes `width` numbers of a column at once must know of how weights are stored: columns and
    numbers that share a scale (0: all of a column), and as many of these as never have two."""
    if values.dtype == torch.uint8:
        depth, groups = _depth(values), scale.shape[1]
        group = depth // groups if groups > 1 else 0
        return {"KIND": INT4, "SHARE": 1, "GROUP": group, "UNIT": _unit(group, width), "ZERO": zero is not None}
    by_block = scale.ndim == 2
    group, number = BLOCK * by_block, FLOAT8 if values.dtype.is_floating_point else INT8
    return {
        "KIND": number,
        "SHARE": BLOCK if by_block else 1,
        "GROUP": group,
        "UNIT": _unit(group, width),
        "ZERO": False,
    }


def _unit(group: int, width: int) -> int:
    """The largest power of two that divides a group, up to `width`."""
    return min(group & -group, width) or width


def _depth(values: torch.Tensor) -> int:
    """Numbers of a column."""
    return values.shape[1] * (2 if values.dtype == torch.uint8 else 1)


def quantized_linear(
    rows: torch.Tensor,
    values: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Any rows [..., depth], with weights [columns, depth] stored as `quantized.QuantizedLinear` says: [..., columns]."""
    columns, depth = values.shape[0], _depth(values)
    if rows.numel() // depth <= MAX_ROWS:
        product: torch.Tensor = skinny_quantized_product(rows.reshape(-1, depth), values, scale, zero)
        product = product.view(*rows.shape[:-1], columns)
    else:
        step = max(BLOCK, PIECE_NUMBERS // depth // BLOCK * BLOCK)
        per = BLOCK if scale.ndim == 2 and values.dtype != torch.uint8 else 1
        parts = [
            any_product(
                rows,
                stood_for(
                    values[at : at + step],
                    scale[at // per : (at + step) // per],
                    None if zero is None else zero[at : at + step],
                    rows.dtype,
                ),
            )
            for at in range(0, columns, step)
        ]
        product = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return product if bias is None else product + bias


@torch.library.custom_op("pipedec::skinny_quantized_product", mutates_args=())
def skinny_quantized_product(
    rows: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
) -> torch.Tensor:
    """Rows [rows, depth] in one of `DTYPES`, up to MAX_ROWS: [rows, columns]."""
    count, depth = rows.shape
    columns = values.shape[0]
    output = rows.new_empty(count, columns)
    if not count:
        return output
    bits = 4 if values.dtype == torch.uint8 else 8
    sizes = shape(count, columns, depth, rows.element_size(), shared_memory(rows.device), bits)
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]  # Triton launches on the current one
        _quantized_product[(triton.cdiv(columns, sizes["COLUMNS"]),)](
            rows.contiguous(),
            _bytes(values),
            scale,
            scale if zero is None else zero,
            output,
            count,
            columns,
            depth,
            scale.shape[-1],
            UPCAST=upcast(rows.dtype),
            **kind(values, scale, zero, int(sizes["PIECE"])),
            **sizes,
        )
    return output


@skinny_quantized_product.register_fake
def _like_output(
    rows: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None
) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], values.shape[0])


@torch.library.custom_op("pipedec::stood_for", mutates_args=())
def stood_for(values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """What stored weights stand for, [columns, depth] in `dtype`."""
    columns, depth = values.shape[0], _depth(values)
    output = values.new_empty((columns, depth), dtype=dtype)
    with torch.cuda.device_of(values):  # type: ignore[no-untyped-call]
        _stood_for[(triton.cdiv(columns, TILE[0]), triton.cdiv(depth, TILE[1]))](
            _bytes(values),
            scale,
            scale if zero is None else zero,
            output,
            columns,
            depth,
            scale.shape[-1],
            **kind(values, scale, zero, TILE[1]),
            ROWS=TILE[0],
            WIDTH=TILE[1],
        )
    return output


@stood_for.register_fake
def _like_values(
    values: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:
    return values.new_empty((values.shape[0], _depth(values)), dtype=dtype)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    """Devices before compute capability 8.9 know no float8: kernels take it apart themselves."""
    return values if values.dtype == torch.uint8 else values.view(torch.int8)


@triton.jit  # type: ignore[untyped-decorator]
def _of_units(  # type: ignore[no-untyped-def]
    pointer, there, start, groups, GROUP: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr
):
    """The scales, or zeros, of each column's `WIDTH` numbers from `start`, one for each unit: [columns, units]."""
    if GROUP:
        group = (start + tl.arange(0, WIDTH // UNIT) * UNIT) // GROUP
        return tl.load(pointer[:, None] + group[None, :], mask=there[:, None] & (group < groups)[None, :], other=0)
    return tl.load(pointer, mask=there, other=0)[:, None]


@triton.jit  # type: ignore[untyped-decorator]
def _factor(  # type: ignore[no-untyped-def]
    scale,
    there,
    start,
    groups,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    UNIT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """What `_numbers` multiplies by."""
    found = _of_units(scale, there, start, groups, GROUP, UNIT, WIDTH).to(tl.float32)
    if KIND == _FLOAT8:
        return found * _BIAS
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _less(  # type: ignore[no-untyped-def]
    zero,
    there,
    start,
    groups,
    ZERO: tl.constexpr,
    GROUP: tl.constexpr,
    UNIT: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """What `_numbers` takes from 4-bit numbers."""
    if ZERO:
        return _of_units(zero, there, start, groups, GROUP, UNIT, WIDTH).to(tl.float32) + _LARGE
    return tl.full([1, 1], _MIDDLE, tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def _numbers(  # type: ignore[no-untyped-def]
    raw, less, factor, KIND: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr
):
    """Float32 numbers [columns, width], 4-bit ones less `less`, times `factor`."""
    if KIND == _FLOAT8:
        made = ((raw.to(tl.int32) << 20) & _BITS).to(tl.float32, bitcast=True)
    elif KIND == _INT4:
        pair = raw.to(tl.int32)
        made = (tl.interleave(pair & 15, pair >> 4) | _LARGE_BITS).to(tl.float32, bitcast=True)
    else:
        made = raw.to(tl.float32)
    if UNIT < WIDTH:
        made = tl.reshape(made, [COLUMNS, WIDTH // UNIT, UNIT])
        if KIND == _INT4:
            made = made - less[:, :, None]
        return tl.reshape(made * factor[:, :, None], [COLUMNS, WIDTH])
    if KIND == _INT4:
        made = made - less
    return made * factor


@triton.jit(do_not_specialize=("count",))  # type: ignore[untyped-decorator]
def _quantized_product(  # type: ignore[no-untyped-def]
    rows,
    values,
    scale,
    zero,
    output,
    count,
    columns,
    depth,
    groups,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PIECE: tl.constexpr,
    EVEN: tl.constexpr,
    KIND: tl.constexpr,
    SHARE: tl.constexpr,
    GROUP: tl.constexpr,
    UNIT: tl.constexpr,
    ZERO: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Some columns of the product, summed in float32. `tl.dot` takes them for rows: there are more of them."""
    PER: tl.constexpr = 2 if KIND == _INT4 else 1  # numbers of a byte
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    there = column < columns
    values += column[:, None].to(tl.int64) * (depth // PER)
    row, at, place = tl.arange(0, ROWS), tl.arange(0, PIECE), tl.arange(0, PIECE // PER)
    real = (row < count)[None, :]
    sums = tl.zeros([COLUMNS, ROWS], tl.float32)
    scale += (column // SHARE) * (groups if GROUP else 1)
    zero += column * (groups if GROUP else 1)
    if not GROUP:
        factor = _factor(scale, there, 0, groups, KIND, GROUP, UNIT, PIECE)
        less = _less(zero, there, 0, groups, ZERO, GROUP, UNIT, PIECE)
    for start in range(0, depth, PIECE):
        if EVEN:
            raw = tl.load(values + (start // PER + place)[None, :])
            x = tl.load(rows + row[None, :] * depth + (start + at)[:, None], mask=real, other=0.0)
        else:
            inside = start + at < depth
            stored = start // PER + place < depth // PER
            raw = tl.load(values + (start // PER + place)[None, :], mask=there[:, None] & stored[None, :], other=0)
            x = tl.load(rows + row[None, :] * depth + (start + at)[:, None], mask=real & inside[:, None], other=0.0)
        if GROUP:
            factor = _factor(scale, there, start, groups, KIND, GROUP, UNIT, PIECE)
            less = _less(zero, there, start, groups, ZERO, GROUP, UNIT, PIECE)
        w = _numbers(raw, less, factor, KIND, COLUMNS, UNIT, PIECE).to(rows.dtype.element_ty)
        if UPCAST:
            w, x = w.to(tl.float32), x.to(tl.float32)
        sums = tl.dot(w, x, sums)
    output += row[None, :] * columns + column[:, None]
    tl.store(output, sums.to(output.dtype.element_ty), mask=real & there[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _stood_for(  # type: ignore[no-untyped-def]
    values,
    scale,
    zero,
    output,
    columns,
    depth,
    groups,
    KIND: tl.constexpr,
    SHARE: tl.constexpr,
    GROUP: tl.constexpr,
    UNIT: tl.constexpr,
    ZERO: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A tile of weights."""
    PER: tl.constexpr = 2 if KIND == _INT4 else 1
    start = tl.program_id(1) * WIDTH
    column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = column < columns
    scale += (column // SHARE) * (groups if GROUP else 1)
    zero += column * (groups if GROUP else 1)
    factor = _factor(scale, there, start, groups, KIND, GROUP, UNIT, WIDTH)
    less = _less(zero, there, start, groups, ZERO, GROUP, UNIT, WIDTH)
    place = start // PER + tl.arange(0, WIDTH // PER)
    stored = there[:, None] & (place < depth // PER)[None, :]
    raw = tl.load(values + column[:, None].to(tl.int64) * (depth // PER) + place[None, :], mask=stored, other=0)
    made = _numbers(raw, less, factor, KIND, ROWS, UNIT, WIDTH)
    at = start + tl.arange(0, WIDTH)
    output += column[:, None].to(tl.int64) * depth + at[None, :]
    tl.store(output, made.to(output.dtype.element_ty), mask=there[:, None] & (at < depth)[None, :])
