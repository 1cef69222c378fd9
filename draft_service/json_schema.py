"""What of a client's JSON schema a grammar needs. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

# Keywords that say nothing of what follows the schema; those that map names to schemas; those that have none in them.
_ANNOTATIONS = {"description", "title", "default", "examples", "$comment", "deprecated", "readOnly", "writeOnly"}
_MAPS = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
_VALUES = {"enum", "const", "required", "type", "dependentRequired"}
_LOOKS_AROUND = re.compile(r"\(\?<?[=!]|\\[1-9]")


def simplified(schema: Any, *, lenient: bool) -> Any:
    """The schema without its annotations. If `lenient` also without patterns that look around or back, as libraries
    write them and no grammar can follow. Raises `RecursionError`."""
    if isinstance(schema, list):
        return [simplified(each, lenient=lenient) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {
        keyword: _inner(keyword, value, lenient)
        for keyword, value in schema.items()
        if keyword not in _ANNOTATIONS and not (lenient and _is_beyond(keyword, value))
    }


def _inner(keyword: str, value: Any, lenient: bool) -> Any:
    if keyword in _VALUES:
        return value
    if keyword in _MAPS and isinstance(value, Mapping):
        beyond = lenient and keyword == "patternProperties"
        return {
            name: simplified(each, lenient=lenient)
            for name, each in value.items()
            if not (beyond and _LOOKS_AROUND.search(name))
        }
    return simplified(value, lenient=lenient)


def _is_beyond(keyword: str, value: Any) -> bool:
    return keyword == "pattern" and isinstance(value, str) and bool(_LOOKS_AROUND.search(value))
