"""`quant_method: compressed-tensors`, as vLLM's llm-compressor writes it.

https://github.com/vllm-project/compressed-tensors: `config_groups` name the targets and the scheme of their weights;
the format says how these are stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from pipedec.quantization.fields import EVERY, compiled, group_size, refuse_any, refuse_unless, refused, texts
from pipedec.quantization.fp8 import check_block
from pipedec.quantization.scheme import FLOAT8, INT8, PACKED, Quantization, Scheme, Strategy

_FORMATS = ("float-quantized", "int-quantized", "naive-quantized")  # which store a weight in the same way
_PACKED = "pack-quantized"
_CLASS = "Linear"  # as a target, every linear layer
_IN_8_BITS: tuple[Strategy, ...] = ("tensor", "channel", "block")
_IN_4_BITS: tuple[Strategy, ...] = ("channel", "group")


def read_compressed_tensors(found: Mapping[str, Any]) -> Quantization:
    """Raises ModelError that names the field that is not run."""
    refuse_any(found, "kv_cache_scheme", "transform_config")
    sparsity = found.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense":
        raise refused("sparsity_config", sparsity)
    if found.get("quantization_status", "compressed") != "compressed":
        raise refused("quantization_status", found["quantization_status"])
    groups = found.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise refused("config_groups", groups)
    ranked: list[tuple[int, re.Pattern[str], Scheme]] = []
    for name, group in groups.items():
        field = f"config_groups.{name}"
        if not isinstance(group, Mapping):
            raise refused(field, group)
        if group.get("weights") is not None:
            scheme = _scheme(field, group, found.get("format"))
            ranked += [(*_target(field, target), scheme) for target in texts(f"{field}.targets", group.get("targets"))]
    ignored = [_target("ignore", entry)[1] for entry in texts("ignore", found.get("ignore") or [])]
    targets = tuple((pattern, scheme) for _, pattern, scheme in sorted(ranked, key=lambda each: each[0]))
    return Quantization("compressed-tensors", ("weight_scale",), targets, tuple(ignored))


def _scheme(field: str, group: Mapping[str, Any], default_format: object) -> Scheme:
    form = group.get("format") or default_format
    if form not in (*_FORMATS, _PACKED):
        raise refused("format" if group.get("format") is None else f"{field}.format", form)
    weights = group["weights"]
    field = f"{field}.weights"
    if not isinstance(weights, Mapping):
        raise refused(field, weights)
    packed = form == _PACKED
    if (bits := weights.get("num_bits", 8)) != (4 if packed else 8):
        raise refused(f"{field}.num_bits", bits)
    symmetric = (True, False) if packed else (True,)
    refuse_unless(weights, f"{field}.", symmetric=symmetric, actorder=(None, False, "weight", "static"))
    kinds = {"int": PACKED} if packed else {"float": FLOAT8, "int": INT8}
    if (kind := weights.get("type", "int")) not in kinds:
        raise refused(f"{field}.type", kind)
    strategy = weights.get("strategy") or {None: "tensor", -1: "channel"}.get(weights.get("group_size"), "group")
    if strategy == "block":
        check_block(f"{field}.block_structure", weights.get("block_structure"))
    known = next((each for each in (_IN_4_BITS if packed else _IN_8_BITS) if each == strategy), None)
    if known is None:
        raise refused(f"{field}.strategy", strategy)
    if not packed:
        return Scheme(kinds[kind], (known,))
    size = group_size(f"{field}.group_size", weights.get("group_size")) if known == "group" else None
    return Scheme(PACKED, (known,), "compressed-tensors", size, zeros=not weights.get("symmetric", True))


def _target(field: str, entry: str) -> tuple[int, re.Pattern[str]]:
    """How general an entry is (a name, an expression, all linear layers), and what it matches."""
    if entry.startswith("re:"):
        return 1, compiled(field, entry.removeprefix("re:"))
    return (2, EVERY) if entry == _CLASS else (0, re.compile(re.escape(entry) + r"\Z"))
