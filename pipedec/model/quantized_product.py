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

from pipedec.model.quantized import numbers_of, outputs_of
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
_LARGE = tl.constexpr(0x4B000000)


def shape(rows: int, columns: int, depth: int, item_bytes: int, shared: int, bits: int = 8) -> dict[str, int | bool]:
    """How to launch the kernel where a program has `shared` bytes of shared memory, for weights of so many bits."""
    width, piece, most = _MANY if columns >= PROGRAMS * _MANY[0] else _FEW
    height = max(LEAST_ROWS, triton.next_power_of_2(rows))
    on_their_way = piece * width * bits // 8 + item_bytes * piece * height
    stages = min(most, 1 + (shared - item_bytes * piece * width) // on_their_way)
    even = columns % width == 0 and depth % piece == 0
    return {"ROWS": height, "COLUMNS": width, "PIECE": piece, "EVEN": even, "num_warps": 4, "num_stages": stages}


def kind(values: torch.Tensor, scale: torch.Tensor, width: int) -> dict[str, int]:
    """What a kernel that takes `width` numbers of a column at once must know of how weights are stored: columns and
    numbers that share a scale (0: all of a column), and as many of these as never have two."""
    if values.dtype == torch.uint8:
        number, group = INT4, (_depth(values) // scale.shape[1]) * (scale.shape[1] > 1)
    else:
        number, group = FLOAT8 if values.dtype.is_floating_point else INT8, BLOCK * (scale.ndim == 2)
    unit = min(group & -group, width) if group else width  # a power of two
    return {"KIND": number, "SHARE": outputs_of(values, scale), "GROUP": group, "UNIT": unit}


def _depth(values: torch.Tensor) -> int:
    """Numbers of a column."""
    return values.shape[1] * numbers_of(values.dtype)


def quantized_linear(
    rows: torch.Tensor, values: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor | None
) -> torch.Tensor:
    """Any rows [..., depth], with weights [columns, depth] stored as in `quantized.QuantizedLinear`: [..., columns]."""
    columns, depth = values.shape[0], _depth(values)
    if rows.numel() // depth <= MAX_ROWS:
        product: torch.Tensor = skinny_quantized_product(rows.reshape(-1, depth), values, scale)
        product = product.view(*rows.shape[:-1], columns)
    else:
        step = max(BLOCK, PIECE_NUMBERS // depth // BLOCK * BLOCK)
        per = outputs_of(values, scale)
        parts = [
            any_product(rows, stood_for(values[at : at + step], scale[at // per : (at + step) // per], rows.dtype))
            for at in range(0, columns, step)
        ]
        product = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
    return product if bias is None else product + bias


@torch.library.custom_op("pipedec::skinny_quantized_product", mutates_args=())
def skinny_quantized_product(rows: torch.Tensor, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Rows [rows, depth] in one of `DTYPES`, up to MAX_ROWS: [rows, columns]."""
    count, depth = rows.shape
    columns = values.shape[0]
    output = rows.new_empty(count, columns)
    if not count:
        return output
    bits = 8 // numbers_of(values.dtype)
    sizes = shape(count, columns, depth, rows.element_size(), shared_memory(rows.device), bits)
    with torch.cuda.device_of(rows):  # type: ignore[no-untyped-call]  # Triton launches on the current one
        _quantized_product[(triton.cdiv(columns, sizes["COLUMNS"]),)](
            rows.contiguous(),
            _bytes(values),
            scale,
            output,
            count,
            columns,
            depth,
            scale.shape[-1],
            UPCAST=upcast(rows.dtype),
            **kind(values, scale, int(sizes["PIECE"])),
            **sizes,
        )
    return output


@skinny_quantized_product.register_fake
def _like_output(rows: torch.Tensor, values: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return rows.new_empty(rows.shape[0], values.shape[0])


@torch.library.custom_op("pipedec::stood_for", mutates_args=())
def stood_for(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What stored weights stand for, [columns, depth] in `dtype`."""
    columns, depth = values.shape[0], _depth(values)
    output = values.new_empty((columns, depth), dtype=dtype)
    with torch.cuda.device_of(values):  # type: ignore[no-untyped-call]
        _stood_for[(triton.cdiv(columns, TILE[0]), triton.cdiv(depth, TILE[1]))](
            _bytes(values),
            scale,
            output,
            columns,
            depth,
            scale.shape[-1],
            **kind(values, scale, TILE[1]),
            ROWS=TILE[0],
            WIDTH=TILE[1],
        )
    return output


@stood_for.register_fake
def _like_values(values: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return values.new_empty((values.shape[0], _depth(values)), dtype=dtype)


def _bytes(values: torch.Tensor) -> torch.Tensor:
    """Devices before compute capability 8.9 know no float8: kernels take it apart themselves."""
    return values if values.dtype == torch.uint8 else values.view(torch.int8)


@triton.jit  # type: ignore[untyped-decorator]
def _of_units(  # type: ignore[no-untyped-def]
    scale, there, start, groups, GROUP: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr
):
    """The scales of each column's `WIDTH` numbers from `start`: [columns, units], or of two units one for each number,
    which compiles to a third fewer instructions."""
    if GROUP and UNIT * 2 == WIDTH:
        group = start // GROUP
        behind = (start + UNIT) // GROUP
        first = tl.load(scale + group, mask=there, other=0.0)
        second = tl.load(scale + behind, mask=there & (behind < groups), other=0.0)
        found = tl.where((tl.arange(0, WIDTH) < UNIT)[None, :], first[:, None], second[:, None])
    elif GROUP:
        group = (start + tl.arange(0, WIDTH // UNIT) * UNIT) // GROUP
        found = tl.load(scale[:, None] + group[None, :], mask=there[:, None] & (group < groups)[None, :], other=0.0)
    else:
        found = tl.load(scale, mask=there, other=0.0)[:, None]
    return found


@triton.jit  # type: ignore[untyped-decorator]
def _numbers(  # type: ignore[no-untyped-def]
    raw, scale, KIND: tl.constexpr, COLUMNS: tl.constexpr, UNIT: tl.constexpr, WIDTH: tl.constexpr
):
    """Float32 numbers [columns, width], times their scales as `_of_units` gives them, of 4 bits less the zeros in
    these."""
    if KIND == _FLOAT8:
        made = ((raw.to(tl.int32) << 20) & _BITS).to(tl.float32, bitcast=True)
        scale = scale * _BIAS
    elif KIND == _INT4:
        pair, coded = raw.to(tl.int32), scale.to(tl.int32, bitcast=True)
        made = (tl.interleave(pair & 15, pair >> 4) | _LARGE).to(tl.float32, bitcast=True)
        zero = ((coded & 15) | _LARGE).to(tl.float32, bitcast=True)
        scale = (coded & -16).to(tl.float32, bitcast=True)
    else:
        made = raw.to(tl.float32)
    if UNIT * 2 < WIDTH:
        parts = tl.reshape(made, [COLUMNS, WIDTH // UNIT, UNIT])
        if KIND == _INT4:
            parts = parts - zero[:, :, None]
        made = tl.reshape(parts * scale[:, :, None], [COLUMNS, WIDTH])
    else:
        if KIND == _INT4:
            made = made - zero
        made = made * scale
    return made


@triton.jit(do_not_specialize=("count",))  # type: ignore[untyped-decorator]
def _quantized_product(  # type: ignore[no-untyped-def]
    rows,
    values,
    scale,
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
    if not GROUP:
        factor = _of_units(scale, there, 0, groups, GROUP, UNIT, PIECE)
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
            factor = _of_units(scale, there, start, groups, GROUP, UNIT, PIECE)
        w = _numbers(raw, factor, KIND, COLUMNS, UNIT, PIECE).to(rows.dtype.element_ty)
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
    groups,
    KIND: tl.constexpr,
    SHARE: tl.constexpr,
    GROUP: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """A tile of weights."""
    PER: tl.constexpr = 2 if KIND == _INT4 else 1
    start = tl.program_id(1) * WIDTH
    column = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    there = column < columns
    scale += (column // SHARE) * (groups if GROUP else 1)
    factor = _of_units(scale, there, start, groups, GROUP, UNIT, WIDTH)
    place = start // PER + tl.arange(0, WIDTH // PER)
    stored = there[:, None] & (place < depth // PER)[None, :]
    raw = tl.load(values + column[:, None].to(tl.int64) * (depth // PER) + place[None, :], mask=stored, other=0)
    made = _numbers(raw, factor, KIND, ROWS, UNIT, WIDTH)
    at = start + tl.arange(0, WIDTH)
    output += column[:, None].to(tl.int64) * depth + at[None, :]
    tl.store(output, made.to(output.dtype.element_ty), mask=there[:, None] & (at < depth)[None, :])
