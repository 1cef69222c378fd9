"""How one field of a message is written into msgpack, and how it is read back from a peer that may be hostile.

Sequences of integers travel as little-endian int32 in one binary string, so that reading a thousand of them costs
what reading one does. Every reader raises `ProtocolError` naming the field.
"""

from __future__ import annotations

import math
import reprlib
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from pipedec.errors import ProtocolError
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import EMPTY_ROWS, NO_PARENT, Rows

MAX_ROWS = 8192  # activation rows of one batch; the largest prefill chunk, tree rows and cursors of a manifest fit
MAX_ITEMS = 65536  # elements of any other sequence
MAX_TEXT = 1024  # characters

INT32 = np.dtype("<i4")
_COLUMNS = ("request", "node", "parent", "token", "position", "slot")
_FLOOR = np.array([[NO_PARENT if name == "parent" else 0] for name in _COLUMNS], dtype=INT32)


class Field(NamedTuple):
    """`write` makes what msgpack carries; `read(value, name)` checks and restores it."""

    read: Callable[[Any, str], Any]
    write: Callable[[Any], object] = lambda value: value


def refuse(name: str, wanted: str, value: object) -> ProtocolError:
    """The error for a field that is not what it must be."""
    return ProtocolError(f"{name} must be {wanted}, not {reprlib.repr(value)}")


def read_count(value: object, name: str) -> int:
    """An integer in [0, 2**63)."""
    if type(value) is not int or not 0 <= value < 2**63:
        raise refuse(name, "an integer in [0, 2**63)", value)
    return value


def read_id(value: object, name: str) -> int:
    """An integer in [0, 2**31), as a column of `Rows` can hold."""
    if type(value) is not int or not 0 <= value < 2**31:
        raise refuse(name, "an integer in [0, 2**31)", value)
    return value


def read_text(value: object, name: str) -> str:
    if type(value) is not str or len(value) > MAX_TEXT:
        raise refuse(name, f"text of at most {MAX_TEXT} characters", value)
    return value


def _read_grammar(value: object, name: str) -> str:
    """Text whose length `SamplingParams` bounds."""
    if type(value) is not str:
        raise refuse(name, "text", value)
    return value


def read_number(value: object, name: str) -> float:
    """A finite float; an integer will do."""
    if (type(value) is not float and type(value) is not int) or not math.isfinite(value):
        raise refuse(name, "a finite number", value)
    return float(value)


def read_sequence(value: object, name: str, limit: int = MAX_ITEMS) -> tuple[Any, ...]:
    if type(value) is not tuple or len(value) > limit:
        raise refuse(name, f"a sequence of at most {limit}", value)
    return value


def read_record(value: object, name: str, length: int) -> tuple[Any, ...]:
    if type(value) is not tuple or len(value) != length:
        raise refuse(name, f"a sequence of {length}", value)
    return value


def write_ids(values: Sequence[int]) -> bytes:
    return struct.pack(f"<{len(values)}i", *values)


def read_ids(value: object, name: str) -> tuple[int, ...]:
    """Non-negative int32s from their packed bytes."""
    if type(value) is not bytes or len(value) % 4 or len(value) > 4 * MAX_ITEMS:
        raise refuse(name, f"at most {MAX_ITEMS} int32, packed", value)
    ids = struct.unpack(f"<{len(value) // 4}i", value)
    if ids and min(ids) < 0:
        raise refuse(name, "non-negative", min(ids))
    return ids


def _write_id_pairs(pairs: Sequence[tuple[int, int]]) -> bytes:
    return write_ids([number for pair in pairs for number in pair])


def _read_id_pairs(value: object, name: str) -> tuple[tuple[int, int], ...]:
    ids = read_ids(value, name)
    if len(ids) % 2:
        raise refuse(name, "pairs of int32", f"{len(ids)} of them")
    return tuple(zip(ids[::2], ids[1::2], strict=True))


def read_weights(value: object, name: str) -> tuple[tuple[int, float], ...]:
    """Pairs of an id and a number."""
    pairs = (read_record(pair, name, 2) for pair in read_sequence(value, name))
    return tuple((read_id(number, name), read_number(weight, name)) for number, weight in pairs)


def _read_span(value: object, name: str) -> tuple[int, int]:
    start, stop = (read_id(bound, name) for bound in read_record(value, name, 2))
    if start >= stop:
        raise refuse(name, "a span with start < stop", value)
    return start, stop


_SAMPLING: dict[str, Callable[[Any, str], Any]] = {
    "temperature": read_number,
    "top_k": read_id,
    "top_p": read_number,
    "min_p": read_number,
    "repetition_penalty": read_number,
    "presence_penalty": read_number,
    "frequency_penalty": read_number,
    "logit_bias": read_weights,
    "min_tokens": read_id,
    "end_tokens": lambda value, name: tuple(read_id(token, name) for token in read_sequence(value, name)),
    "seed": read_count,
    "logprobs": read_id,
    "grammar": _read_grammar,
}


def _read_sampling(value: object, name: str) -> SamplingParams:
    if type(value) is not dict or not value.keys() <= _SAMPLING.keys():
        raise refuse(name, f"a mapping with keys among {', '.join(_SAMPLING)}", value)
    try:
        return SamplingParams(**{key: _SAMPLING[key](item, f"{name}.{key}") for key, item in value.items()})
    except ValueError as error:
        raise ProtocolError(f"{name}.{error}") from error


def _write_rows(rows: Rows) -> bytes:
    """int32: the number of rows n, six columns of n, n + 1 ancestor offsets, the ancestor slots. Empty: no rows."""
    if not len(rows):
        return b""
    count = np.array([len(rows)], dtype=np.int32)
    columns = [getattr(rows, name) for name in _COLUMNS]
    parts = (count, *columns, rows.ancestor_offsets, rows.ancestor_slots)
    return np.concatenate(parts, dtype=INT32, casting="equiv").tobytes()


def _read_rows(value: object, name: str) -> Rows:
    if type(value) is not bytes or len(value) % 4:
        raise refuse(name, "int32 columns, packed", value)
    if not value:
        return EMPTY_ROWS
    numbers = np.frombuffer(bytearray(value), dtype=INT32)  # a copy: torch wants columns it could write to
    count = int(numbers[0])
    if not 0 < count <= MAX_ROWS:
        raise refuse(f"number of {name}", f"in [1, {MAX_ROWS}]", count)
    if len(numbers) < 7 * count + 2:
        raise refuse(f"columns of {count} {name}", f"at least {7 * count + 2} int32", len(numbers))
    columns = numbers[1 : 6 * count + 1].reshape(6, count)
    offsets, ancestors = numbers[6 * count + 1 : 7 * count + 2], numbers[7 * count + 2 :]
    if (columns < _FLOOR).any():
        bad = int((columns < _FLOOR).any(axis=1).argmax())
        raise refuse(f"{name}.{_COLUMNS[bad]}", f"at least {_FLOOR[bad, 0]}", int(columns[bad].min()))
    if offsets[0] != 0 or offsets[-1] != len(ancestors) or (offsets[1:] < offsets[:-1]).any():
        raise refuse(f"{name}.ancestor_offsets", f"monotone from 0 to {len(ancestors)}", offsets.tolist())
    if len(ancestors) and ancestors.min() < 0:
        raise refuse(f"{name}.ancestor_slots", "non-negative", int(ancestors.min()))
    request, node, parent, token, position, slot = columns
    return Rows(request, node, parent, token, position, slot, offsets, ancestors)


COUNT = Field(read_count)
ID = Field(read_id)
TEXT = Field(read_text)
NUMBER = Field(read_number)
IDS = Field(read_ids, write_ids)
ID_PAIRS = Field(_read_id_pairs, _write_id_pairs)
WEIGHTS = Field(read_weights)
SPAN = Field(_read_span)
SAMPLING = Field(_read_sampling, SamplingParams.to_wire)
ROWS = Field(_read_rows, _write_rows)
