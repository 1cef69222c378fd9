"""What a peer with the pipeline's keys can send that does not belong: broken, of the wrong shape, late, replayed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import zmq

from benchmarks.up import Target
from pipedec.sampling_params import SamplingParams
from pipedec.wire.codec import encode
from pipedec.wire.keys import Keys
from pipedec.wire.messages import (
    NO_PARENT,
    Batch,
    Decision,
    Formation,
    Heartbeat,
    Joined,
    Open,
    Prefill,
    Register,
    Row,
    Rows,
    Started,
    Verdict,
)

SEND_SECONDS = 30.0  # until a message that no port takes counts as a port that hangs
OLD_EPOCH = 1  # milliseconds after 1970
HUGE = 2**23  # bytes: beyond what any port but a wide stage's takes; the connection is cut

_BATCH = Batch(
    OLD_EPOCH,
    0,
    (Open(1, SamplingParams(), 2), Prefill(1, 0, (5, 6), (0, 1))),
    Rows.of([Row(1, 0, NO_PARENT, 7, 2, 2, ()), Row(1, 1, 0, 8, 3, 3, (2,))]),
)
_VERDICT = Verdict(OLD_EPOCH, 0, (Decision(0, (1, 2, 3)),))
_LATE = (Heartbeat(OLD_EPOCH, 0, 99), Joined(OLD_EPOCH, 0), Started(OLD_EPOCH, 0, 2**40))
_OFFERS = tuple(
    Register(stage, 2, (2 * stage, 2 * stage + 2), "0" * 16, "tcp://127.0.0.1:9", 64, "someone-else", 32, "float32")
    for stage in (0, 1, 63)
)
Frames = Sequence[bytes]


class Insider:
    """A peer of one port, with the right keys. Counts what it sends by what must become of it."""

    def __init__(self, opened: zmq.Socket[bytes], target: Target, row_bytes: int) -> None:
        self._socket, self._target, self._row_bytes = opened, target, row_bytes
        self.sent = {"malformed": 0, "stale": 0, "refused": 0, "ignored": 0}

    def send(self, rng: random.Random) -> None:
        """One message. Raises `zmq.Again` if the port takes none for `SEND_SECONDS`."""
        fate, frames = rng.choice((self._broken, self._broken, self._late))(rng)
        self._socket.send_multipart(frames)
        self.sent[fate] += 1

    def _valid(self) -> Frames:
        """A message that this port takes, but of an epoch long gone."""
        match self._target.role:
            case "verdicts":
                return [encode(_VERDICT)]
            case "control":
                return [encode(_LATE[0])]
        if self._target.process == "stage 0":
            return [encode(_BATCH)]
        return [encode(_BATCH), b"", bytes(_BATCH.num_rows * self._row_bytes)]

    def _late(self, rng: random.Random) -> tuple[str, Frames]:
        if self._target.role != "control":
            return "stale", self._valid()
        if rng.random() < 0.5:
            return "refused", [encode(rng.choice(_OFFERS))]
        return "ignored", [encode(rng.choice(_LATE))]

    def _broken(self, rng: random.Random) -> tuple[str, Frames]:
        first, *others = self._valid()
        return "malformed", rng.choice(
            (
                [rng.randbytes(rng.randint(0, 1000)), *others],
                [first[: rng.randint(0, len(first) - 1)], *others],
                [first, *others, b"one frame too many"],
                [encode(Formation(OLD_EPOCH, "tcp://127.0.0.1:9", 16)), *others],
                [first + b"\0", *others],
                [first, b"\0" * 5, *(others[1:] or [b""])],
            )
        )


@contextmanager
def connected(target: Target, keys: Keys, row_bytes: int) -> Iterator[Insider]:
    """An insider at a port."""
    with zmq.Context() as context, context.socket(_kind(target)) as opened:
        _use_keys(opened, keys)
        opened.linger, opened.sndtimeo = round(1000 * SEND_SECONDS), round(1000 * SEND_SECONDS)
        opened.connect(f"tcp://127.0.0.1:{target.port}")
        yield Insider(opened, target, row_bytes)


def send_huge(target: Target, keys: Keys, rng: random.Random) -> None:
    """One message of more bytes than may be sent; what else was on that connection goes with it."""
    with zmq.Context() as context, context.socket(_kind(target)) as opened:
        _use_keys(opened, keys)
        opened.linger = 100
        opened.connect(f"tcp://127.0.0.1:{target.port}")
        opened.send_multipart([rng.randbytes(16), bytes(HUGE)])


def _kind(target: Target) -> int:
    return zmq.DEALER if target.role == "control" else zmq.PUSH


def _use_keys(opened: zmq.Socket[bytes], keys: Keys) -> None:
    opened.curve_serverkey = keys.server.public
    opened.curve_publickey, opened.curve_secretkey = keys.client.public, keys.client.secret
