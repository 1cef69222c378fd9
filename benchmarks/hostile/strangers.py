"""What can be sent to a port without the pipeline's keys."""

from __future__ import annotations

import contextlib
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from benchmarks.up import Target
from pipedec.wire.keys import Keys

HANDSHAKE_SECONDS = 0.02  # that a stranger waits before it hangs up
ZMTP_GREETING = b"\xff\0\0\0\0\0\0\0\1\x7f\3\0"  # signature and version; the mechanism's name would follow
CURVE_GREETING = ZMTP_GREETING[:-1] + b"\1" + b"CURVE".ljust(20, b"\0") + b"\0" * 32
NULL_GREETING = ZMTP_GREETING[:-1] + b"\1" + b"NULL".ljust(20, b"\0") + b"\0" * 32
HUGE_FRAME = b"\2" + (2**62).to_bytes(8, "big")


def raw_bytes(target: Target, rng: random.Random) -> None:
    """Bytes over TCP: random ones, greetings cut short, greetings of another mechanism, frames without end."""
    junk = rng.randbytes(rng.randint(1, 2000))
    greeting = rng.choice((ZMTP_GREETING, CURVE_GREETING, NULL_GREETING))
    content = rng.choice(
        (junk, greeting[: rng.randint(1, len(greeting))], greeting + junk, greeting + HUGE_FRAME + junk)
    )
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", target.port), timeout=5) as connection:
        connection.sendall(content)
        if rng.random() < 0.2:  # else it is gone before it was read
            connection.settimeout(HANDSHAKE_SECONDS)
            connection.recv(4096)


@contextmanager
def _zmq_socket(kind: int) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(kind) as opened:
        opened.linger = 0
        yield opened


def without_keys(target: Target, rng: random.Random) -> None:
    """ZeroMQ, but not CURVE."""
    with _zmq_socket(zmq.DEALER if target.role == "control" else zmq.PUSH) as opened:
        _knock(opened, target, rng)


def with_wrong_keys(target: Target, rng: random.Random, keys: Keys) -> None:
    """CURVE with a pair of its own: towards the server's real key, which a spy may know, or towards another."""
    public, secret = zmq.curve_keypair()
    with _zmq_socket(zmq.DEALER if target.role == "control" else zmq.PUSH) as opened:
        opened.curve_serverkey = rng.choice((keys.server.public, public))
        opened.curve_publickey, opened.curve_secretkey = public, secret
        _knock(opened, target, rng)


def _knock(opened: zmq.Socket[bytes], target: Target, rng: random.Random) -> None:
    opened.connect(f"tcp://127.0.0.1:{target.port}")
    opened.send(rng.randbytes(rng.randint(0, 500)))
    time.sleep(HANDSHAKE_SECONDS)


def http(target: Target, rng: random.Random) -> int | None:
    """HTTP that is wrong in one way or another; the status of the answer, if there is one."""
    routes = ("/v1/completions", "/v1/chat/completions", "/v1/responses")
    path = rng.choice((*routes, "/metrics", "/nowhere", "*", "/" + "a" * 9000))
    body = rng.choice(
        (
            rng.randbytes(rng.randint(0, 3000)),
            b'{"model": "under-test", "prompt": ' + b"[" * rng.randint(1, 5000),
            b'{"model": "under-test", "prompt": "' + b"\xf0" * 100 + b'"}',
            b'{"model": "under-test", "prompt": [' + b"1," * 3000 + b"-1]}",
            b'{"model": "under-test", "prompt": "x", "max_tokens": 1e400}',
            b'{"model": "under-test", "prompt": "x", "n": ' + b"9" * 4400 + b"}",
        )
    )
    head = b"%s %s HTTP/1.%d\r\nHost: x\r\n" % (
        rng.choice((b"POST", b"GET", b"BREW", b"\xff")),
        path.encode(),
        rng.choice((0, 1, 9)),
    )
    head += rng.choice((b"Content-Type: application/json\r\n", b"X: " + b"y" * 20000 + b"\r\n", b"\0\r\n", b""))
    length = rng.choice((len(body), len(body) + 1, -1, 2**40))
    content = head + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % length + body
    try:
        with socket.create_connection(("127.0.0.1", target.port), timeout=10) as connection:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(64)
    except OSError:
        return None
    words = answer.split()
    return int(words[1]) if answer.startswith(b"HTTP/") and len(words) > 1 and words[1].isdigit() else None
