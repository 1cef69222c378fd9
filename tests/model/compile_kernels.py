"""`python -m tests.model.compile_kernels GPU...`: compiles kernels for GPUs that need not be there, and prints a JSON
line for each.

A GPU is [compute capability, bytes of shared memory that a program has, dtype, names of the kernels, their sizes]. A
program of its own: where there is no GPU, the tests' process has kernels interpreted.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

import torch
from triton import compile as compile_for
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipedec.model import (
    quantized_product,
    skinny_product,
    triton_attention,
    triton_draw,
    triton_likeliest,
    triton_store,
)

NUMBERS = dict.fromkeys(
    ("query_row_stride", "query_head_stride", "head_stride", "slot_stride", "rows_stride", "items_at", "window"), "i32"
)
# Not known to be multiples of 16.
ODD = ("window", "rows_stride", "items_at", "items", "kv_heads", "count", "pieces", "groups")
STORED = ("pool_head_stride", "pool_slot_stride", "key_head_stride", "key_row_stride", "value_head_stride")
HEADS = (  # rows, query heads per KV head, head_dim
    (32, 8, 128),  # a stage of Llama-3.1-70B, many rows
    (1, 8, 128),  # and one row
    (32, 4, 64),  # a draft like Llama-3.2-1B
    (32, 2, 256),  # wide heads
    (1, 128, 64),  # one KV head for so many that a row alone fills a large program
)
# Of quantised weights: their dtype (uint8 for two 4-bit numbers), how many share a scale (None: all of an output).
KINDS = (
    (torch.float8_e4m3fn, 128),
    (torch.uint8, 128),
    (torch.float8_e4m3fn, None),
    (torch.int8, None),
    (torch.uint8, 32),
)
DEPTH = 8192

# Heads, and products: rows, columns, kinds of quantised weights. The large ones are those that take most memory.
SIZES = {
    "all": (HEADS, ((1, 28672, KINDS), (64, 28672, KINDS[:1]), (64, 2048, KINDS[:1]))),
    "large": ((HEADS[0], HEADS[3]), ((64, 28672, KINDS[:2]), (64, 2048, KINDS[:1]))),
    "small": (HEADS[1:2], ((1, 28672, KINDS[:2]),)),
}

Kind = tuple[torch.dtype, int | None]

wanted = set[str]()  # kernels


def report(capability: int, dtype: str, kernel: Any, signature: dict[str, str], constants: dict[str, int]) -> None:
    if kernel.__name__ not in wanted:
        return
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages") if name in constants}
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (names.index(name),): [["tt.divisibility", 16]]
            for name, kind in signature.items()
            if name not in ODD and kind != "fp32"
        },
    )
    made = compile_for(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": True, **options})
    print(
        json.dumps(
            {
                "kernel": kernel.__name__,
                "capability": capability,
                "dtype": dtype,
                "shared": made.metadata.shared,
                "tensor_cores": any(name in made.asm["ptx"] for name in ("wgmma.mma_async", "mma.sync")),
            }
        )
    )


def main(capability: int, shared: int, dtype: str, sizes: str) -> None:
    """All for one kind of GPU, where a program has that much shared memory."""
    heads, products = SIZES[sizes]
    triton_attention.shared_memory = lambda device: shared  # type: ignore[assignment]
    half, numbers = f"*{dtype}", {"partial": "*fp32", "state": "*fp32"}
    for rows, group, dim in heads:
        compute = triton_attention.TritonCompute(8, 8 * group, dim, torch.float16, torch.device("cpu"))
        queries = compute.tile(rows) * group
        head = {"GROUP": group, "GROUP_PADDED": group, "DIM": dim, "DIM_PADDED": dim}
        pools = {"query": half, "keys": half, "values": half, "table": "*i32", "scale": "fp32"}
        looking = {"TILE": queries // group, "KEYS": compute.keys, "WINDOWED": dim == 64, "UPCAST": False}
        attend = {**head, **looking, **triton_attention.launch(queries)}
        report(capability, dtype, triton_attention._attend_piece, pools | numbers | NUMBERS, attend)
        bundled = {**head, "QUERIES": queries, "BUNDLE": group, "PIECES": 2}
        joined = {"table": "*i32", "output": half, "rows_stride": "i32", "items": "i32", "kv_heads": "i32"}
        report(capability, dtype, triton_attention._join_pieces, numbers | joined, bundled)
        stored = dict.fromkeys(("key_pool", "value_pool", "keys", "values"), half) | dict.fromkeys(STORED, "i32")
        stored |= {"table": "*i32", "value_row_stride": "i32", "rows_stride": "i32"}
        report(capability, dtype, triton_store._store_row, stored, {"DIM": dim, "DIM_PADDED": dim, "num_warps": 1})
    for rows, columns, kinds in products:
        given = dict.fromkeys(("rows", "weight", "output"), half) | dict.fromkeys(("count", "columns", "depth"), "i32")
        constants = {**skinny_product.shape(rows, columns, 2, shared), "UPCAST": False}
        report(capability, dtype, skinny_product._product, given, constants)
        quantized(capability, shared, dtype, kinds, rows, columns)
    pieces = {"keys": "*i64", "state": "*fp32"}
    seen = pieces | {"logits": "*fp32", "vocabulary": "i32"}
    ranked = pieces | {"tokens": "*i64", "logprobs": "*fp32", "pieces": "i32"}
    for children in (16, 64):
        of_piece, of_row = triton_likeliest.sizes(32, children)  # of 128,256 tokens
        report(capability, dtype, triton_likeliest._look_at_piece, seen, of_piece)
        report(capability, dtype, triton_likeliest._join_row, ranked, of_row)
    drawn = {"scores": "*fp32", "states": "*i64", "values": "*fp64", "tokens": "*i64", "vocabulary": "i32"}
    report(capability, dtype, triton_draw._draw_of_piece, drawn, {"PIECE": triton_draw.PIECE, "num_warps": 4})


def quantized(capability: int, shared: int, dtype: str, kinds: Sequence[Kind], rows: int, columns: int) -> None:
    """The kernels of quantised weights."""
    half = f"*{dtype}"
    for numbers, group in kinds:
        small = numbers == torch.uint8
        groups = 1 if group is None else DEPTH // group
        shape = (columns // 128, groups) if group and not small else (columns, groups)[: 1 + small]
        values = torch.empty(columns, DEPTH // 2 if small else DEPTH, dtype=numbers, device="meta")
        scale = torch.empty(shape, device="meta")
        weights = {"values": "*u8" if small else "*i8", "scale": "*fp32", "output": half}
        weights |= dict.fromkeys(("columns", "depth", "groups"), "i32")
        sizes = quantized_product.shape(rows, columns, DEPTH, 2, shared, 4 if small else 8)
        constants = {**sizes, **quantized_product.kind(values, scale, sizes["PIECE"]), "UPCAST": False}
        given = weights | {"rows": half, "count": "i32"}
        report(capability, dtype, quantized_product._quantized_product, given, constants)
        tile = dict(zip(("ROWS", "WIDTH"), quantized_product.TILE, strict=True))
        tile |= quantized_product.kind(values, scale, tile["WIDTH"])
        report(capability, dtype, quantized_product._stood_for, weights, tile)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        *gpu, names, sizes = json.loads(argument)
        wanted = set(names)
        main(*gpu, sizes)
