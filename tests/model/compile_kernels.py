"""Compiles the attention kernels for GPUs that need not be there, and prints a line of JSON for each.

A program of its own: where there is no GPU, the tests' process has the kernels interpreted.
"""

from __future__ import annotations

import json
from typing import Any

from triton import compile as compile_for
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from pipedec.model import triton_attention

NUMBERS = dict.fromkeys(
    ("query_row_stride", "query_head_stride", "head_stride", "slot_stride", "rows_stride", "items_at", "window"), "i32"
)
ODD = ("scale", "window", "rows_stride", "items_at", "items", "kv_heads")  # not known to be multiples of 16
JOINED = {"rows_stride": "i32", "items": "i32", "kv_heads": "i32"}
SHAPES = (  # bits of capability, dtype, rows of a tile, query heads per KV head, head_dim
    (90, "bf16", 16, 8, 128),  # a stage of Llama-3.1-70B, many rows
    (90, "bf16", 2, 8, 128),  # and one row
    (80, "fp16", 32, 4, 64),  # a draft like Llama-3.2-1B
)


def compiled(kernel: Any, capability: int, signature: dict[str, str], constants: dict[str, Any], warps: int) -> Any:
    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: signature.get(name, "constexpr") for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in signature if name not in ODD},
    )
    options = {"num_warps": warps, "num_stages": 2, "enable_fp_fusion": True}
    return compile_for(source, target=GPUTarget("cuda", capability, 32), options=options)


def main() -> None:
    for capability, dtype, tile, group, dim in SHAPES:
        sizes = {"GROUP": group, "GROUP_PADDED": group, "DIM": dim, "DIM_PADDED": dim}
        pools = {"query": f"*{dtype}", "keys": f"*{dtype}", "values": f"*{dtype}", "table": "*i32"}
        attend = compiled(
            triton_attention._attend_piece,
            capability,
            {**pools, "partial": "*fp32", "state": "*fp32", "scale": "fp32", **NUMBERS},
            {**sizes, "TILE": tile, "KEYS": 64, "WINDOWED": dim == 64, "UPCAST": False},
            warps=8 if tile * group >= 128 else 4,
        )
        join = compiled(
            triton_attention._join_pieces,
            capability,
            {"partial": "*fp32", "state": "*fp32", "table": "*i32", "output": f"*{dtype}", **JOINED},
            {**sizes, "QUERIES": tile * group, "PIECES": 16},
            warps=4,
        )
        shared = max(attend.metadata.shared, join.metadata.shared)
        tensor_cores = any(name in attend.asm["ptx"] for name in ("wgmma.mma_async", "mma.sync"))
        print(json.dumps({"capability": capability, "dtype": dtype, "shared": shared, "tensor_cores": tensor_cores}))


if __name__ == "__main__":
    main()
