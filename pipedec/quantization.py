"""Checkpoints with 8-bit weights: what the `quantization_config` of a config.json says of them. Pure.

A weight is a stored number times its scale. Two methods are known: `fp8`, with a scale for each block of 128 x 128
numbers or for each tensor; and `compressed-tensors`, where each number has a byte of its own, with a scale for each
tensor, each output or each block. All others are refused by name. What a config says of activations changes nothing:
they are never quantised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from pipedec.errors import ModelError

Strategy = Literal["tensor", "channel", "block"]  # what shares a scale: a tensor, one output, 128 x 128 numbers
BLOCK = 128
PIECE_NUMBERS = 1 << 27  # of 8-bit weights that a GPU makes what they stand for at once, for a batch of many rows
FLOAT8, INT8 = "F8_E4M3", "I8"  # as safetensors calls them
SCALE_ENDINGS = ("_scale", "_scale_inv", "_zero_point", "_g_idx")  # of tensors that are no parameters

_FIELD = "quantization_config"
_REMEDY = (
    "use the model's original weights, or a checkpoint in 8 bits: quant_method fp8, or compressed-tensors in format "
    "float-quantized or int-quantized"
)
_FORMATS = ("float-quantized", "int-quantized", "naive-quantized")  # which store a weight in the same way
_CLASS = "Linear"  # as a target, every linear layer


@dataclass(frozen=True, slots=True)
class Scheme:
    """How a linear layer's weight is stored: safetensors' dtype, and what may share a scale."""

    dtype: str
    strategies: tuple[Strategy, ...]


@dataclass(frozen=True, slots=True)
class Quantization:
    """Which linear layers have 8-bit weights. `scale_names`: what the tensor of scales may be called beside `weight`;
    `targets`, the most particular first, match names of modules from their beginning, as `ignored` do."""

    method: str
    scale_names: tuple[str, ...]
    targets: tuple[tuple[re.Pattern[str], Scheme], ...]
    ignored: tuple[re.Pattern[str], ...]

    def scheme(self, module: str) -> Scheme | None:
        """That of the linear layer of this name; None if its weight is stored as it is."""
        if any(pattern.match(module) for pattern in self.ignored):
            return None
        return next((scheme for pattern, scheme in self.targets if pattern.match(module)), None)


def read_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """What a config.json says; None if its weights are not quantised. Raises ModelError that names the field."""
    found = config.get(_FIELD)
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise ModelError(f"config.json: `{_FIELD}` is not a JSON object; download it again")
    match found.get("quant_method"):
        case "fp8":
            return _fp8(found)
        case "compressed-tensors":
            return _compressed_tensors(found)
    raise _refused("quant_method", found.get("quant_method"))


def _fp8(found: Mapping[str, Any]) -> Quantization:
    _refuse_any(found, "modules_to_convert", "kv_cache_scheme")
    for name, known in (("fmt", ("e4m3", "float8_e4m3fn")), ("expert_dtype", ("fp8",))):
        if found.get(name, known[0]) not in known:
            raise _refused(name, found[name])
    strategies: tuple[Strategy, ...] = ("block", "tensor")
    if "weight_block_size" in found:
        _check_block("weight_block_size", found["weight_block_size"] or [BLOCK, BLOCK])
        strategies = ("block",) if found["weight_block_size"] else ("tensor",)
    name = "ignored_layers" if found.get("modules_to_not_convert") is None else "modules_to_not_convert"
    ignored = found.get(name)
    skipped = [_fp8_pattern(name, entry) for entry in (["lm_head"] if ignored is None else _texts(name, ignored))]
    every = (re.compile(""), Scheme(FLOAT8, strategies))
    return Quantization("fp8", ("weight_scale_inv", "weight_scale"), (every,), tuple(skipped))


def _fp8_pattern(field: str, entry: str) -> re.Pattern[str]:
    """As transformers reads it: an expression for whole parts of the name from its beginning, or the name's end."""
    return _compiled(field, rf"(?:{entry})(?:(?<=\.)|(?=\.|$))|.*{re.escape(entry)}$")


def _compressed_tensors(found: Mapping[str, Any]) -> Quantization:
    _refuse_any(found, "kv_cache_scheme", "transform_config")
    sparsity = found.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping) or sparsity.get("format", "dense") != "dense":
        raise _refused("sparsity_config", sparsity)
    if found.get("quantization_status", "compressed") != "compressed":
        raise _refused("quantization_status", found["quantization_status"])
    groups = found.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise _refused("config_groups", groups)
    ranked: list[tuple[int, re.Pattern[str], Scheme]] = []
    for name, group in groups.items():
        field = f"config_groups.{name}"
        if not isinstance(group, Mapping):
            raise _refused(field, group)
        if group.get("weights") is not None:
            scheme = _scheme(field, group, found.get("format"))
            ranked += [(*_target(field, target), scheme) for target in _texts(f"{field}.targets", group.get("targets"))]
    ignored = [_target("ignore", entry)[1] for entry in _texts("ignore", found.get("ignore") or [])]
    targets = tuple((pattern, scheme) for _, pattern, scheme in sorted(ranked, key=lambda each: each[0]))
    return Quantization("compressed-tensors", ("weight_scale",), targets, tuple(ignored))


def _scheme(field: str, group: Mapping[str, Any], default_format: object) -> Scheme:
    form = group.get("format") or default_format
    if form not in _FORMATS:
        raise _refused("format" if group.get("format") is None else f"{field}.format", form)
    weights = group["weights"]
    field = f"{field}.weights"
    if not isinstance(weights, Mapping):
        raise _refused(field, weights)
    for name, known in (("num_bits", (8,)), ("symmetric", (True,)), ("actorder", (None, False, "weight", "static"))):
        if (value := weights.get(name, known[0])) not in known:
            raise _refused(f"{field}.{name}", value)
    kinds = {"float": FLOAT8, "int": INT8}
    if (kind := weights.get("type", "int")) not in kinds:
        raise _refused(f"{field}.type", kind)
    strategy = weights.get("strategy") or {None: "tensor", -1: "channel"}.get(weights.get("group_size"), "group")
    if strategy == "block":
        _check_block(f"{field}.block_structure", weights.get("block_structure"))
    for known_strategy in get_args(Strategy):
        if strategy == known_strategy:
            return Scheme(kinds[kind], (known_strategy,))
    raise _refused(f"{field}.strategy", strategy)


def _target(field: str, entry: str) -> tuple[int, re.Pattern[str]]:
    """How general an entry is (a name, an expression, all linear layers), and what it matches."""
    if entry.startswith("re:"):
        return 1, _compiled(field, entry.removeprefix("re:"))
    return (2, re.compile("")) if entry == _CLASS else (0, re.compile(re.escape(entry) + r"\Z"))


def _compiled(field: str, expression: str) -> re.Pattern[str]:
    try:
        return re.compile(expression)
    except re.error as error:
        raise ModelError(f"config.json: `{_FIELD}.{field}` has a faulty expression ({error}); correct it") from error


def _texts(field: str, value: object) -> Iterable[str]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(each, str) for each in value):
        raise ModelError(f"config.json: `{_FIELD}.{field}` is {value!r}, a list of names is expected")
    return value


def _check_block(field: str, value: object) -> None:
    if value not in ([BLOCK, BLOCK], f"{BLOCK}x{BLOCK}"):
        raise _refused(field, value)


def _refuse_any(found: Mapping[str, Any], *names: str) -> None:
    for name in names:
        if found.get(name):
            raise _refused(name, found[name])


def _refused(field: str, value: object) -> ModelError:
    said = repr(value)
    said = said if len(said) <= 80 else f"{said[:77]}..."
    return ModelError(f"config.json: `{_FIELD}.{field}` is {said}; checkpoints quantised so are not run: {_REMEDY}")
