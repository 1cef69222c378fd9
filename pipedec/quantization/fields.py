"""Fields of a `quantization_config`, checked."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pipedec.errors import ModelError

FIELD = "quantization_config"
EVERY = re.compile("")
_LEAST_GROUP = 32
_REMEDY = (
    "use the model's original weights, or a checkpoint in 8 bits (quant_method fp8, or compressed-tensors in format "
    "float-quantized or int-quantized) or in 4 bits (quant_method gptq, awq in version gemm, or compressed-tensors in "
    "format pack-quantized)"
)


def refused(field: str, value: object) -> ModelError:
    """What is raised for a field whose value is not run."""
    said = repr(value)
    said = said if len(said) <= 80 else f"{said[:77]}..."
    return ModelError(f"config.json: `{FIELD}.{field}` is {said}; checkpoints quantised so are not run: {_REMEDY}")


def refuse_any(found: Mapping[str, Any], *names: str) -> None:
    """Refuse fields that must be empty or not there."""
    for name in names:
        if found.get(name):
            raise refused(name, found[name])


def refuse_unless(found: Mapping[str, Any], prefix: str = "", /, **known: tuple[Any, ...]) -> None:
    """Refuse fields that are none of the known values, of which the first is what a missing one means."""
    for name, values in known.items():
        value = found.get(name, values[0])
        # True is 1, and no number of bits.
        if not any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in values):
            raise refused(f"{prefix}{name}", value)


def compiled(field: str, expression: str) -> re.Pattern[str]:
    """An expression of this field."""
    try:
        return re.compile(expression)
    except re.error as error:
        raise ModelError(f"config.json: `{FIELD}.{field}` has a faulty expression ({error}); correct it") from error


def texts(field: str, value: object) -> Iterable[str]:
    """A list of names."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not all(isinstance(each, str) for each in value):
        raise ModelError(f"config.json: `{FIELD}.{field}` is {value!r}, a list of names is expected")
    return value


def left_out(field: str, entry: str) -> re.Pattern[str]:
    """As transformers reads modules that are not converted: an expression for whole parts of the name from its
    beginning, or the name's end."""
    return compiled(field, rf"(?:{entry})(?:(?<=\.)|(?=\.|$))|.*{re.escape(entry)}$")


def group_size(field: str, value: object) -> int | None:
    """How many numbers that follow each other share a scale; None: all of an output, which is written as -1."""
    if isinstance(value, bool) or not isinstance(value, int) or (value != -1 and (value < 1 or value % _LEAST_GROUP)):
        raise refused(field, value)
    return None if value == -1 else value
