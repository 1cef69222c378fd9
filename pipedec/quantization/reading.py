"""What the `quantization_config` of a config.json says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipedec.errors import ModelError
from pipedec.quantization.compressed import read_compressed_tensors
from pipedec.quantization.fields import FIELD, refused
from pipedec.quantization.fp8 import read_fp8
from pipedec.quantization.packed import read_awq, read_gptq
from pipedec.quantization.scheme import Quantization


def read_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """What a config.json says; None if its weights are not quantised. Raises ModelError that names the field."""
    found = config.get(FIELD)
    if found is None:
        return None
    if not isinstance(found, Mapping):
        raise ModelError(f"config.json: `{FIELD}` is not a JSON object; download it again")
    match found.get("quant_method"):
        case "fp8":
            return read_fp8(found)
        case "compressed-tensors":
            return read_compressed_tensors(found)
        case "gptq":
            return read_gptq(found)
        case "awq":
            return read_awq(found)
    raise refused("quant_method", found.get("quant_method"))
