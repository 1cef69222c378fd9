"""Messages survive the wire bit for bit; everything else is refused with a reason."""

from __future__ import annotations

from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipedec.errors import ProtocolError
from pipedec.sampling_params import MAX_GRAMMAR, SamplingParams
from pipedec.wire.codec import (
    MAX_HEADER_BYTES,
    Activation,
    decode,
    decode_batch,
    decode_from_head,
    decode_from_stage,
    decode_verdict,
    encode,
    encode_activation,
)
from pipedec.wire.messages import (
    PROTOCOL_VERSION,
    Batch,
    Cancel,
    Close,
    Commit,
    Decision,
    Formation,
    Heartbeat,
    Joined,
    Message,
    Open,
    Poison,
    Prefill,
    Refused,
    Register,
    Reuse,
    Row,
    Rows,
    Shutdown,
    Started,
    TokenLogprobs,
    Verdict,
)
from tests import messages

ROW_BYTES = 6
EXAMPLES: dict[str, Message] = {
    "batch": Batch(
        5,
        7,
        (
            Open(1, SamplingParams(temperature=0.5, end_tokens=(2,), grammar="start: /a*/"), 3),
            Prefill(1, 0, (9, 8), (0, 1)),
            Reuse(3, 0, (7, 6), (2, 3)),
            Commit(1, (4,)),
            Close(2),
            Poison((6,)),
        ),
        Rows.of([Row(1, 0, -1, 40, 2, 5, ()), Row(1, 1, 0, 41, 3, 6, (5,))]),
    ),
    "empty-batch": Batch(5, 8),
    "verdict": Verdict(5, 7, (Decision(1, (42,), (TokenLogprobs(-0.5, ((42, -0.5), (7, -1.5))),), "no", "nor"),)),
    "register": Register(1, 2, (4, 8), "r1", "tcp://h:1", 64, "i1", 32, "float32"),
    "formation": Formation(5, "tcp://h:2", 64),
    "joined": Joined(5, 1),
    "started": Started(5, 0, 7),
    "cancel": Cancel(5, 7, ((1, 3), (1, 4))),
    "heartbeat": Heartbeat(5, 1, 6, ((8, 0.25),)),
    "refused": Refused("wrong revision"),
    "shutdown": Shutdown("bye"),
}


GOLDEN = dict(line.split() for line in Path(__file__).with_name("golden.txt").read_text().splitlines())


@pytest.mark.parametrize("name", EXAMPLES)
def test_bytes_never_change_within_a_protocol_version(name: str) -> None:
    assert encode(EXAMPLES[name]).hex() == GOLDEN[name]
    assert decode(bytes.fromhex(GOLDEN[name])) == EXAMPLES[name]


@given(messages.messages)
def test_round_trip(message: Message) -> None:
    decoded = decode(encode(message))
    assert decoded == message
    assert type(decoded) is type(message)


@given(messages.batches)
def test_columns_are_writable_int32(batch: Batch) -> None:
    decoded = decode(encode(batch))
    assert isinstance(decoded, Batch)
    for name in Rows.__slots__:
        column = getattr(decoded.rows, name)
        assert column.dtype == np.int32
        assert column.flags.writeable


@given(st.binary(max_size=200).filter(lambda header: not header.startswith(bytes([0x93, PROTOCOL_VERSION]))))
def test_random_bytes_are_refused(header: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(header)


@given(messages.messages, st.data())
def test_truncated_and_lengthened_headers_are_refused(message: Message, data: st.DataObject) -> None:
    header = encode(message)
    with pytest.raises(ProtocolError):
        decode(header[: data.draw(st.integers(0, len(header) - 1))])
    with pytest.raises(ProtocolError):
        decode(header + data.draw(st.binary(min_size=1, max_size=4)))


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.integers(0, 9), st.lists(plain, max_size=9))
def test_well_formed_msgpack_with_any_fields_is_read_or_refused(kind: int, fields: list[object]) -> None:
    header = msgpack.packb([PROTOCOL_VERSION, kind, *fields])
    try:
        message = decode(header)
    except ProtocolError:
        return
    assert decode(encode(message)) == message


def packed(*numbers: int) -> bytes:
    return np.array(numbers, dtype="<i4").tobytes()


GOOD_ROWS = (1, 0, 0, -1, 40, 2, 5, 0, 1, 9)  # one row: count, six columns, two offsets, one ancestor


def rows_with(index: int, value: int) -> bytes:
    numbers = list(GOOD_ROWS)
    numbers[index] = value
    return packed(*numbers)


V = PROTOCOL_VERSION
BATCH, VERDICT, REGISTER, CANCEL, HEARTBEAT = 0, 1, 2, 6, 7
REFUSED = {
    "another version": ([PROTOCOL_VERSION + 1, 4, 5, 1], f"the protocol version must be {V}, not {V + 1}"),
    "version of another type": ([True, 4, 5, 1], "the protocol version"),
    "unknown kind": ([V, 10], "the kind must be an integer in [0, 10), not 10"),
    "negative kind": ([V, -1], "the kind must be"),
    "no array": (7, "a header must be"),
    "too few fields": ([V, BATCH, 5, 7, []], "Batch must be 4 fields"),
    "negative epoch": ([V, BATCH, -1, 7, [], b""], "Batch.epoch must be an integer in [0, 2**63), not -1"),
    "boolean step": ([V, BATCH, 1, True, [], b""], "Batch.step must be an integer"),
    "huge step": ([V, BATCH, 1, 2**63, [], b""], "Batch.step must be an integer"),
    "ops of another type": ([V, BATCH, 1, 1, 3, b""], "Batch.ops must be a sequence"),
    "too many ops": ([V, BATCH, 1, 1, [[3, 1]] * 4097, b""], "Batch.ops must be a sequence of at most 4096"),
    "unknown op": ([V, BATCH, 1, 1, [[6, 1]], b""], "an op in Batch.ops must be a tag in [0, 6)"),
    "empty op": ([V, BATCH, 1, 1, [[]], b""], "an op in Batch.ops"),
    "op with too few fields": ([V, BATCH, 1, 1, [[2, 1]], b""], "Commit must be 2 fields"),
    "prefill without slots": ([V, BATCH, 1, 1, [[1, 1, 0, packed(4), b""]], b""], "Prefill.slots must be one slot"),
    "prefill of nothing": ([V, BATCH, 1, 1, [[1, 1, 0, b"", b""]], b""], "Prefill.slots must be one slot"),
    "torn slots": ([V, BATCH, 1, 1, [[2, 1, b"abc"]], b""], "Commit.slots must be at most 65536 int32, packed"),
    "negative slot": ([V, BATCH, 1, 1, [[2, 1, packed(3, -4)]], b""], "Commit.slots must be non-negative, not -4"),
    "too many prefill rows": (
        [V, BATCH, 1, 1, [[1, 1, 0, bytes(4 * 8193), bytes(4 * 8193)]], b""],
        "the rows of a batch must be at most 8192, not 8193",
    ),
    "unknown sampling": ([V, BATCH, 1, 1, [[0, 1, {"magic": 1}, 0]], b""], "Open.sampling must be a mapping"),
    "wrong sampling": ([V, BATCH, 1, 1, [[0, 1, {"top_p": 2.0}, 0]], b""], "Open.sampling.top_p must be in [0, 1]"),
    "wrong grammar": ([V, BATCH, 1, 1, [[0, 1, {"grammar": 5}, 0]], b""], "Open.sampling.grammar must be text"),
    "long grammar": (
        [V, BATCH, 1, 1, [[0, 1, {"grammar": "a" * (MAX_GRAMMAR + 1)}, 0]], b""],
        "Open.sampling.grammar must have at most",
    ),
    "sampling not a number": ([V, BATCH, 1, 1, [[0, 1, {"min_p": float("nan")}, 0]], b""], "Open.sampling.min_p must"),
    "torn rows": ([V, BATCH, 1, 1, [], b"abcde"], "Batch.rows must be int32 columns"),
    "rows as text": ([V, BATCH, 1, 1, [], "abcd"], "Batch.rows must be int32 columns"),
    "no rows": ([V, BATCH, 1, 1, [], rows_with(0, 0)], "number of Batch.rows must be in [1, 8192], not 0"),
    "too many rows": ([V, BATCH, 1, 1, [], rows_with(0, 9000)], "number of Batch.rows must be in [1, 8192], not 9000"),
    "missing columns": ([V, BATCH, 1, 1, [], rows_with(0, 2)], "columns of 2 Batch.rows must be at least 16 int32"),
    "negative token": ([V, BATCH, 1, 1, [], rows_with(4, -1)], "Batch.rows.token must be at least 0, not -1"),
    "parent below none": ([V, BATCH, 1, 1, [], rows_with(3, -2)], "Batch.rows.parent must be at least -1, not -2"),
    "offsets from one": ([V, BATCH, 1, 1, [], rows_with(7, 1)], "Batch.rows.ancestor_offsets must be monotone"),
    "offsets too far": ([V, BATCH, 1, 1, [], rows_with(8, 2)], "Batch.rows.ancestor_offsets must be monotone"),
    "negative ancestor": ([V, BATCH, 1, 1, [], rows_with(9, -3)], "Batch.rows.ancestor_slots must be non-negative"),
    "logprobs of other tokens": (
        [V, VERDICT, 1, 1, [[1, packed(4, 5), [[-1.0, []]], "", ""]]],
        "Verdict.decisions.logprobs must be none or 2",
    ),
    "decision of two": ([V, VERDICT, 1, 1, [[1, b""]]], "Verdict.decisions must be a sequence of 5"),
    "empty span": ([V, REGISTER, 0, 1, [4, 4], "r", "a", 1, "i", 1, "d"], "Register.layers must be a span"),
    "endless text": ([V, REGISTER, 0, 1, [0, 4], "r" * 1025, "a", 1, "i", 1, "d"], "Register.revision must be text"),
    "odd pairs": ([V, CANCEL, 1, 1, packed(1, 2, 3)], "Cancel.nodes must be pairs"),
    "infinite seconds": ([V, HEARTBEAT, 1, 1, 1, [[8, float("inf")]]], "Heartbeat.seconds must be a finite number"),
}  # fmt: skip


@pytest.mark.parametrize(("values", "reason"), REFUSED.values(), ids=REFUSED)
def test_refusals_name_the_field_and_what_it_must_be(values: object, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(msgpack.packb(values))
    assert str(caught.value).startswith(reason)


def test_descending_offsets_are_refused() -> None:
    numbers = (2, *(0, 0), *(0, 1), *(-1, 0), *(4, 5), *(1, 2), *(3, 4), *(0, 2, 1), 9)
    with pytest.raises(ProtocolError, match="ancestor_offsets must be monotone from 0 to 1"):
        decode(msgpack.packb([V, BATCH, 1, 1, [], packed(*numbers)]))


def test_headers_have_a_limit_both_ways() -> None:
    with pytest.raises(ProtocolError, match="at most"):
        decode(bytes(MAX_HEADER_BYTES + 1))
    with pytest.raises(ValueError, match="at most"):
        encode(Cancel(1, 1, ((0, 0),) * (MAX_HEADER_BYTES // 8)))


def test_columns_of_another_type_are_not_sent() -> None:
    rows = Rows.of([Row(1, 0, -1, 40, 2, 5, ())])
    wrong = Rows(rows.request.astype(np.int64), *(getattr(rows, name) for name in Rows.__slots__[1:]))  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        encode(Batch(1, 1, (), wrong))


def test_a_link_takes_only_its_own_kinds() -> None:
    heartbeat, joined, refused, verdict = Heartbeat(1, 0, 0), Joined(1, 0), Refused("no"), Verdict(1, 0)
    assert decode_from_stage([encode(joined)]) == joined
    assert decode_from_stage([encode(heartbeat)]) == decode_from_head([encode(heartbeat)]) == heartbeat
    assert decode_verdict([encode(verdict)]) == verdict
    with pytest.raises(
        ProtocolError, match="the kind must be Register or Joined or Started or Heartbeat, not 'Refused'"
    ):
        decode_from_stage([encode(refused)])
    with pytest.raises(ProtocolError, match="not 'Joined'"):
        decode_from_head([encode(joined)])
    with pytest.raises(ProtocolError, match="the kind must be Verdict"):
        decode_verdict([encode(refused)])
    with pytest.raises(ProtocolError, match="the number of frames must be 1, not 2"):
        decode_verdict([encode(verdict), b""])


def batch_of(rows: int) -> bytes:
    return encode(Batch(1, 0, (), Rows.of([Row(1, i, i - 1, 4, i, i, ()) for i in range(rows)])))


@pytest.mark.parametrize("alive", [None, [], [0], [0, 2], [0, 1, 2]])
def test_activations_round_trip(alive: list[int] | None) -> None:
    indices = None if alive is None else np.array(alive, dtype=np.int32)
    count = 3 if alive is None else len(alive)
    data = bytes(range(count * ROW_BYTES))
    header = batch_of(3)
    received = decode_batch([header, *encode_activation(Activation(data, count, indices))], ROW_BYTES)
    assert received.header == header
    assert received.activation is not None
    assert (received.activation.data, received.activation.rows) == (data, count)
    decoded = received.activation.alive
    assert decoded is None if alive is None else decoded is not None and decoded.tolist() == alive


def test_data_is_not_copied() -> None:
    data = memoryview(bytearray(3 * ROW_BYTES))
    frames = encode_activation(Activation(data, 3))
    received = decode_batch([batch_of(3), *frames], ROW_BYTES)
    assert frames[1] is data
    assert received.activation is not None
    assert received.activation.data is data


@pytest.mark.parametrize(
    ("alive", "data", "reason"),
    [
        (b"", bytes(17), "the activation must be 3 rows of 6 bytes = 18, not 17"),
        (b"", bytes(6), "the activation must be 3 rows"),
        (packed(0, 1), bytes(18), "the activation must be 2 rows"),
        (b"abc", bytes(18), "alive must be at most 3 int32"),
        (packed(0, 1, 2, 3), bytes(24), "alive must be at most 3 int32"),
        (packed(1, 0), bytes(12), "alive must be ascending in [0, 3), not [1, 0]"),
        (packed(1, 1), bytes(12), "alive must be ascending"),
        (packed(0, 3), bytes(12), "alive must be ascending"),
        (packed(-1, 0), bytes(12), "alive must be ascending"),
    ],
)
def test_activations_that_do_not_fit_are_refused(alive: bytes, data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        decode_batch([batch_of(3), alive, data], ROW_BYTES)
    assert str(caught.value).startswith(reason)


def test_a_batch_has_as_many_frames_as_its_link_carries() -> None:
    header = batch_of(3)
    assert decode_batch([header], None).activation is None
    for frames, row_bytes in (([], None), ([header, b"", b""], None), ([header], ROW_BYTES), ([header] * 4, ROW_BYTES)):
        with pytest.raises(ProtocolError, match="the number of frames of a batch must be"):
            decode_batch(frames, row_bytes)
