"""Messages to frames and back. Never pickle; nothing is believed before it is checked.

    frame 0  header: msgpack [protocol version, kind, fields ...], as the tables below say
    frame 1  alive: int32 indices of the activation rows that follow, ascending; empty means all rows of the batch,
             or, when frame 2 is empty too, none
    frame 2  activation: [alive rows, width] in the pipeline's dtype, row-major

A `Batch` has one frame from the draft pod to stage 0 and three between stages; every other message has one. A
stage forwards frame 0 as the bytes it received.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeAlias

import msgpack
import numpy as np

from pipedec.errors import ProtocolError
from pipedec.wire import fields as f
from pipedec.wire import messages as m
from pipedec.wire.fields import MAX_ROWS, Field, read_record, read_sequence, refuse

MAX_HEADER_BYTES = 8 * 2**20
MAX_OPS = 4096

Buffer: TypeAlias = bytes | bytearray | memoryview
FromStage: TypeAlias = m.Register | m.Joined | m.Started | m.Heartbeat
FromHead: TypeAlias = m.Formation | m.Cancel | m.Heartbeat | m.Refused | m.Shutdown


@dataclass(frozen=True, slots=True)
class Schema:
    """The wire form of one dataclass: its code (a message's kind, an op's tag), and its fields in order."""

    type: type
    code: int
    fields: tuple[tuple[str, Field], ...]

    def write(self, item: object) -> list[object]:
        return [self.code, *(field.write(getattr(item, name)) for name, field in self.fields)]

    def read(self, values: tuple[Any, ...]) -> Any:
        """`values` without the code. Raises `ProtocolError`."""
        name = self.type.__name__
        if len(values) != len(self.fields):
            raise refuse(name, f"{len(self.fields)} fields", values)
        pairs = zip(self.fields, values, strict=True)
        return self.type(*(field.read(value, f"{name}.{key}") for (key, field), value in pairs))


def _schema(cls: Any, code: int, *kinds: Field) -> Schema:
    return Schema(cls, code, tuple(zip((field.name for field in fields(cls)), kinds, strict=True)))


_OPS = (
    _schema(m.Open, 0, f.ID, f.SAMPLING, f.COUNT),
    _schema(m.Prefill, 1, f.ID, f.ID, f.IDS, f.IDS),
    _schema(m.Commit, 2, f.ID, f.IDS),
    _schema(m.Close, 3, f.ID),
    _schema(m.Poison, 4, f.IDS),
    _schema(m.Reuse, 5, f.ID, f.ID, f.IDS, f.IDS),
)
_OP_BY_TYPE = {schema.type: schema for schema in _OPS}


def _write_ops(ops: Sequence[m.Op]) -> list[object]:
    return [_OP_BY_TYPE[type(op)].write(op) for op in ops]


def _read_ops(value: object, name: str) -> tuple[m.Op, ...]:
    return tuple(_read_op(item, name) for item in read_sequence(value, name, MAX_OPS))


def _read_op(value: object, name: str) -> m.Op:
    if type(value) is not tuple or not value or type(value[0]) is not int or not 0 <= value[0] < len(_OPS):
        raise refuse(f"an op in {name}", f"a tag in [0, {len(_OPS)}) and fields", value)
    op: m.Op = _OPS[value[0]].read(value[1:])
    if isinstance(op, m.Prefill | m.Reuse) and not len(op.tokens) == len(op.slots) > 0:
        raise refuse(f"{type(op).__name__}.slots", "one slot for each of one or more tokens", (op.tokens, op.slots))
    return op


def _write_decisions(decisions: Sequence[m.Decision]) -> list[object]:
    return [
        (
            item.request,
            f.write_ids(item.tokens),
            [(each.logprob, each.top) for each in item.logprobs],
            item.failure,
            item.refusal,
        )
        for item in decisions
    ]


def _read_decision(value: object, name: str) -> m.Decision:
    request, tokens, logprobs, failure, refusal = read_record(value, name, 5)
    entries = [read_record(entry, f"{name}.logprobs", 2) for entry in read_sequence(logprobs, f"{name}.logprobs")]
    decision = m.Decision(
        f.read_id(request, f"{name}.request"),
        f.read_ids(tokens, f"{name}.tokens"),
        tuple(
            m.TokenLogprobs(f.read_number(logprob, f"{name}.logprob"), f.read_weights(top, f"{name}.top"))
            for logprob, top in entries
        ),
        f.read_text(failure, f"{name}.failure"),
        f.read_text(refusal, f"{name}.refusal"),
    )
    if len(decision.logprobs) not in (0, len(decision.tokens)):
        raise refuse(f"{name}.logprobs", f"none or {len(decision.tokens)}", decision.logprobs)
    return decision


_DECISIONS = Field(
    lambda value, name: tuple(_read_decision(item, name) for item in read_sequence(value, name, MAX_OPS)),
    _write_decisions,
)

_MESSAGES = (
    _schema(m.Batch, 0, f.COUNT, f.COUNT, Field(_read_ops, _write_ops), f.ROWS),
    _schema(m.Verdict, 1, f.COUNT, f.COUNT, _DECISIONS),
    _schema(m.Register, 2, f.ID, f.ID, f.SPAN, f.TEXT, f.TEXT, f.ID, f.TEXT, f.ID, f.TEXT),
    _schema(m.Formation, 3, f.COUNT, f.TEXT, f.ID),
    _schema(m.Joined, 4, f.COUNT, f.ID),
    _schema(m.Started, 5, f.COUNT, f.ID, f.COUNT),
    _schema(m.Cancel, 6, f.COUNT, f.COUNT, f.ID_PAIRS),
    _schema(m.Heartbeat, 7, f.COUNT, f.ID, f.COUNT, f.WEIGHTS),
    _schema(m.Refused, 8, f.TEXT),
    _schema(m.Shutdown, 9, f.TEXT),
)
_MESSAGE_BY_TYPE = {schema.type: schema for schema in _MESSAGES}


def encode(message: m.Message) -> bytes:
    """Frame 0 of a message. Raises `ValueError` or `TypeError` for what the wire cannot carry: a bug in the caller."""
    header = msgpack.packb([m.PROTOCOL_VERSION, *_MESSAGE_BY_TYPE[type(message)].write(message)])
    if len(header) > MAX_HEADER_BYTES:
        raise ValueError(f"a {type(message).__name__} of {len(header)} bytes; at most {MAX_HEADER_BYTES} may be sent")
    return bytes(header)


def decode(header: Buffer) -> m.Message:
    """The message of a frame 0. Raises `ProtocolError` for everything that `encode` does not write."""
    if len(header) > MAX_HEADER_BYTES:
        raise ProtocolError(f"a header of {len(header)} bytes; at most {MAX_HEADER_BYTES} are taken")
    try:
        values = msgpack.unpackb(header, use_list=False)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise ProtocolError(f"a header that is not msgpack: {error}") from error
    if type(values) is not tuple or len(values) < 2:
        raise refuse("a header", "[version, kind, fields ...]", values)
    if type(values[0]) is not int or values[0] != m.PROTOCOL_VERSION:
        raise refuse("the protocol version", str(m.PROTOCOL_VERSION), values[0])
    if type(values[1]) is not int or not 0 <= values[1] < len(_MESSAGES):
        raise refuse("the kind", f"an integer in [0, {len(_MESSAGES)})", values[1])
    message: m.Message = _MESSAGES[values[1]].read(values[2:])
    if isinstance(message, m.Batch) and message.num_rows > MAX_ROWS:
        raise refuse("the rows of a batch", f"at most {MAX_ROWS}", message.num_rows)
    return message


def decode_verdict(frames: Sequence[Buffer]) -> m.Verdict:
    """What the last stage sends. Raises `ProtocolError`, as the next two do."""
    verdict: m.Verdict = _only(frames, m.Verdict)
    return verdict


def decode_from_stage(frames: Sequence[Buffer]) -> FromStage:
    """What a stage sends on the control channel."""
    message: FromStage = _only(frames, m.Register, m.Joined, m.Started, m.Heartbeat)
    return message


def decode_from_head(frames: Sequence[Buffer]) -> FromHead:
    """What the draft pod sends on the control channel."""
    message: FromHead = _only(frames, m.Formation, m.Cancel, m.Heartbeat, m.Refused, m.Shutdown)
    return message


def _only(frames: Sequence[Buffer], *kinds: type) -> Any:
    if len(frames) != 1:
        raise refuse("the number of frames", "1", len(frames))
    message = decode(frames[0])
    if type(message) not in kinds:
        raise refuse("the kind", " or ".join(kind.__name__ for kind in kinds), type(message).__name__)
    return message


@dataclass(frozen=True, slots=True, eq=False)
class Activation:
    """What a stage computed for the rows of a batch that are alive.

    `data` is [rows, width] in the pipeline's dtype, row-major, as raw bytes. `alive` holds the indices of these rows
    among the batch's activation rows, ascending; None: all of them.
    """

    data: Buffer
    rows: int
    alive: m.Int32 | None = None


@dataclass(frozen=True, slots=True, eq=False)
class BatchFrames:
    """A batch as it arrived. `header` is its frame 0, to be forwarded; `activation` is None from the draft pod."""

    batch: m.Batch
    header: bytes
    activation: Activation | None = None


def encode_activation(activation: Activation) -> tuple[Buffer, Buffer]:
    """Frames 1 and 2; the activation's bytes are not copied, so they must not change until they are sent."""
    alive = activation.alive
    return b"" if alive is None else alive.astype(f.INT32, casting="equiv", copy=False).tobytes(), activation.data


def decode_batch(frames: Sequence[Buffer], row_bytes: int | None) -> BatchFrames:
    """A batch with its activation, of `row_bytes` (width * item size) per row; None on the link from the draft pod,
    which carries no activation. The data stays where it was received. Raises `ProtocolError`."""
    wanted = 1 if row_bytes is None else 3
    if len(frames) != wanted:
        raise refuse("the number of frames of a batch", str(wanted), len(frames))
    header = bytes(frames[0])
    batch: m.Batch = _only([header], m.Batch)
    if row_bytes is None:
        return BatchFrames(batch, header)
    return BatchFrames(batch, header, _decode_activation(frames[1], frames[2], batch.num_rows, row_bytes))


def _decode_activation(alive: Buffer, data: Buffer, num_rows: int, row_bytes: int) -> Activation:
    indices: m.Int32 | None = None
    if len(alive) or not len(data):
        indices = _decode_alive(alive, num_rows)
    rows = num_rows if indices is None else len(indices)
    if len(data) != rows * row_bytes:
        raise refuse("the activation", f"{rows} rows of {row_bytes} bytes = {rows * row_bytes}", len(data))
    return Activation(data, rows, indices)


def _decode_alive(alive: Buffer, num_rows: int) -> m.Int32:
    if len(alive) % 4 or len(alive) > 4 * num_rows:
        raise refuse("alive", f"at most {num_rows} int32, packed", f"{len(alive)} bytes")
    indices = np.frombuffer(bytearray(alive), dtype=f.INT32)
    if len(indices) and (indices[0] < 0 or indices[-1] >= num_rows or (indices[1:] <= indices[:-1]).any()):
        raise refuse("alive", f"ascending in [0, {num_rows})", indices.tolist())
    return indices
