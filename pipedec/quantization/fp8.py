"""`quant_method: fp8`, as transformers' FineGrainedFP8Config writes it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipedec.quantization.fields import EVERY, left_out, refuse_any, refuse_unless, refused, texts
from pipedec.quantization.scheme import BLOCK, FLOAT8, Quantization, Scheme, Strategy


def read_fp8(found: Mapping[str, Any]) -> Quantization:
    """Raises ModelError that names the field that is not run."""
    refuse_any(found, "modules_to_convert", "kv_cache_scheme")
    refuse_unless(found, fmt=("e4m3", "float8_e4m3fn"), expert_dtype=("fp8",))
    strategies: tuple[Strategy, ...] = ("block", "tensor")
    if "weight_block_size" in found:
        check_block("weight_block_size", found["weight_block_size"] or [BLOCK, BLOCK])
        strategies = ("block",) if found["weight_block_size"] else ("tensor",)
    name = "ignored_layers" if found.get("modules_to_not_convert") is None else "modules_to_not_convert"
    ignored = found.get(name)
    skipped = [left_out(name, entry) for entry in (["lm_head"] if ignored is None else texts(name, ignored))]
    target = EVERY, Scheme(FLOAT8, strategies)
    return Quantization("fp8", ("weight_scale_inv", "weight_scale"), (target,), tuple(skipped))


def check_block(field: str, value: object) -> None:
    """Refuse blocks that are not 128 x 128."""
    if value not in ([BLOCK, BLOCK], f"{BLOCK}x{BLOCK}"):
        raise refused(field, value)
