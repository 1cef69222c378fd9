"""`quant_method: gptq` and `quant_method: awq`: 4-bit weights in groups, each with a zero.

As https://github.com/ModelCloud/GPTQModel (before, AutoGPTQ) and https://github.com/casper-hansen/AutoAWQ write them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipedec.errors import ModelError
from pipedec.quantization.fields import (
    EVERY,
    FIELD,
    compiled,
    group_size,
    left_out,
    refuse_any,
    refuse_unless,
    refused,
    texts,
)
from pipedec.quantization.scheme import PACKED, Packing, Quantization, Scheme

_GROUP = 128  # where a config does not say it
_GPTQ_PACKINGS: dict[object, Packing] = {None: "gptq", "gptq": "gptq", "gptq_v2": "gptq_v2"}
_HEAD = re.compile(r"(?:.*\.)?(?:lm_head|embed_out)\Z")
# What may differ by module and is of no consequence, or is read of the tensors.
_TUNING = {
    "sym",
    "desc_act",
    "damp_percent",
    "damp_auto_increment",
    "mse",
    "static_groups",
    "true_sequential",
    "act_group_aware",
}


def read_gptq(found: Mapping[str, Any]) -> Quantization:
    """`desc_act` and `sym` are of no consequence: order and zeros are in the tensors. Raises ModelError that names the
    field that is not run."""
    _refuse_but_4_bits(found, "bits", "")
    refuse_unless(found, pack_dtype=("int32", None), lm_head=(False, True))
    refuse_any(found, "is_marlin_format", "adapter", "rotation")
    named = "checkpoint_format" if found.get("checkpoint_format") is not None else "format"
    form = found.get(named)
    if form not in _GPTQ_PACKINGS:
        raise refused(named, form)
    packing = _GPTQ_PACKINGS[form]
    size = found.get("group_size", _GROUP)
    scheme = _scheme("group_size", size, packing)
    targets = _dynamic(found.get("dynamic") or {}, packing, size)
    targets += [(_HEAD, scheme if found.get("lm_head") else None), (_blocks(found), scheme)]
    return Quantization("gptq", (), tuple(targets), ())


def read_awq(found: Mapping[str, Any]) -> Quantization:
    """Raises ModelError that names the field that is not run."""
    bits = "w_bit" if "bits" not in found and "w_bit" in found else "bits"
    _refuse_but_4_bits(found, bits, "")
    refuse_unless(found, zero_point=(True,), backend=("auto", "autoawq", None))
    named = "version" if found.get("version") is not None else "format"
    form = found.get(named)
    if form is not None and str(form).lower() != "gemm":
        raise refused(named, form)
    name = "q_group_size" if "group_size" not in found and "q_group_size" in found else "group_size"
    scheme = _scheme(name, found.get(name, _GROUP), "awq")
    skipped = texts("modules_to_not_convert", found.get("modules_to_not_convert") or [])
    ignored = [_HEAD, *(left_out("modules_to_not_convert", entry) for entry in skipped)]
    return Quantization("awq", (), ((EVERY, scheme),), tuple(ignored))


def _refuse_but_4_bits(found: Mapping[str, Any], name: str, prefix: str) -> None:
    if found.get(name) is True or found.get(name) != 4:
        raise refused(f"{prefix}{name}", found.get(name))


def _scheme(field: str, size: object, packing: Packing) -> Scheme:
    group = group_size(field, size)
    return Scheme(PACKED, ("channel" if group is None else "group",), packing, group, zeros=True)


def _dynamic(found: object, packing: Packing, size: object) -> list[tuple[re.Pattern[str], Scheme | None]]:
    """Rules by module, the first that matches decides: `-:` leaves out, others change what is said of all."""
    if not isinstance(found, Mapping):
        raise refused("dynamic", found)
    rules: list[tuple[re.Pattern[str], Scheme | None]] = []
    for expression, changes in found.items():
        field = f"dynamic.{expression}"
        if expression.startswith("-:"):
            rules.append((compiled(field, expression.removeprefix("-:")), None))
            continue
        if not isinstance(changes, Mapping):
            raise refused(field, changes)
        if unknown := sorted(changes.keys() - _TUNING - {"bits", "group_size"}):
            raise refused(f"{field}.{unknown[0]}", changes[unknown[0]])
        if "bits" in changes:
            _refuse_but_4_bits(changes, "bits", f"{field}.")
        scheme = _scheme(f"{field}.group_size", changes.get("group_size", size), packing)
        rules.append((compiled(field, expression.removeprefix("+:")), scheme))
    return rules


def _blocks(found: Mapping[str, Any]) -> re.Pattern[str]:
    """The modules that are quantised: those that are named of every block, or all."""
    name = "modules_in_block_to_quantize"
    lists = found.get(name)
    if not lists:
        return EVERY
    if not isinstance(lists, Sequence) or isinstance(lists, str):
        raise ModelError(f"config.json: `{FIELD}.{name}` is {lists!r}, a list of lists of names is expected")
    flat = [each for part in lists for each in ([part] if isinstance(part, str) else texts(name, part))]
    names = "|".join(re.escape(each) for each in flat)
    block = found.get("block_name_to_quantize")
    before = r".*\." if block is None else rf"{re.escape(str(block))}\.\d+\."
    return re.compile(rf"{before}(?:{names})\Z")
