"""What it costs to pass a batch from stage to stage, without any model.

    python -m benchmarks.transport --stages 14 --rows 32 --hidden 8192

One process per stage, in a ring that begins and ends here. A batch of `rows` rows with its activation goes round by
the product's own sockets, codec and checks, once without and once with CURVE; and the same number of bytes goes round
by plain blocking TCP, received whole before it is passed on. The three take turns, so that a busy machine slows all
of them alike. One round divided by its hops is a sample; medians are shown.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
import time
import timeit
from collections.abc import Callable
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal, Protocol

from pipedec.wire.codec import Activation, Buffer, decode, encode, encode_activation
from pipedec.wire.keys import Keys, generate_keys, load_keys
from pipedec.wire.messages import Batch, Row, Rows
from pipedec.wire.sockets import INSECURE, Bind, DataSender, Poller, Transport, batch_receiver

ITEM_BYTES = 2  # bfloat16
ANCESTORS = 14
WARM_UP = 5
HEADER_CALLS = 2000
CONNECT_SECONDS = 60.0
HOST = "127.0.0.1"


@dataclass(frozen=True, slots=True)
class Load:
    """What goes round."""

    rows: int
    hidden: int

    @property
    def row_bytes(self) -> int:
        return self.hidden * ITEM_BYTES

    def frames(self) -> tuple[Buffer, Buffer, Buffer]:
        """A batch with a chain of ancestors for every row, and an activation."""
        rows = [Row(1, i, i - 1, 1000 + i, 500 + i, i, tuple(range(ANCESTORS))) for i in range(self.rows)]
        activation = Activation(memoryview(bytearray(os.urandom(self.rows * self.row_bytes))), self.rows)
        return (encode(Batch(1, 0, (), Rows.of(rows))), *encode_activation(activation))


@dataclass(frozen=True, slots=True)
class Report:
    """Medians. `bare_tcp_ms`, `plain_ms` and `curve_ms` are milliseconds per hop."""

    stages: int
    rows: int
    hidden: int
    message_bytes: int
    rounds: int
    cores: int
    bare_tcp_ms: float
    plain_ms: float
    curve_ms: float
    plain_over_bare: float
    curve_over_bare: float
    header_bytes: int
    header_encode_us: float
    header_decode_us: float


class Lane(Protocol):
    """One way from a process to the next: bind, connect, relay, close."""

    address: str

    def connect(self, address: str) -> None: ...

    def send(self, frames: tuple[Buffer, ...]) -> None: ...

    def receive(self) -> tuple[Buffer, ...]: ...

    def close(self) -> None: ...


class TcpLane:
    """The same bytes by plain TCP."""

    def __init__(self, load: Load) -> None:
        self._buffer = bytearray(sum(len(frame) for frame in load.frames()))
        self._listener = socket.create_server((HOST, 0))
        self._outgoing = self._incoming = self._listener
        self.address = str(self._listener.getsockname()[1])

    def connect(self, address: str) -> None:
        self._outgoing = socket.create_connection((HOST, int(address)))
        self._outgoing.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming, _ = self._listener.accept()

    def send(self, frames: tuple[Buffer, ...]) -> None:
        for frame in frames:
            self._outgoing.sendall(frame)

    def receive(self) -> tuple[Buffer, ...]:
        view = memoryview(self._buffer)
        while len(view):
            count = self._incoming.recv_into(view)
            if not count:
                raise ConnectionError("the process before this one ended")
            view = view[count:]
        return (memoryview(self._buffer),)

    def close(self) -> None:
        for opened in (self._outgoing, self._incoming, self._listener):
            opened.close()


class WireLane:
    """The product's data link, with everything that a stage does to a batch but computing."""

    def __init__(self, load: Load, keys: Keys | Literal["insecure"]) -> None:
        self._transport = Transport(keys)
        self._receiver = batch_receiver(self._transport, Bind(HOST), row_bytes=load.row_bytes, credits=4)
        self._poller = Poller(self._receiver)
        self.address = self._receiver.address

    def connect(self, address: str) -> None:
        self._sender = DataSender(self._transport, address, credits=4)
        if not self._sender.connected(CONNECT_SECONDS):
            raise ConnectionError(f"{address} does not answer")

    def send(self, frames: tuple[Buffer, ...]) -> None:
        if not self._sender.send(*frames):
            raise ConnectionError("the process after this one ended")

    def receive(self) -> tuple[Buffer, ...]:
        while (received := self._receiver.receive()) is None:
            self._poller.wait(None)
        assert received.activation is not None
        return (received.header, *encode_activation(received.activation))

    def close(self) -> None:
        self._transport.close()


def open_lanes(load: Load, keys: Keys) -> list[Lane]:
    return [TcpLane(load), WireLane(load, INSECURE), WireLane(load, keys)]


def relay(pipe: Connection, load: Load, keys: Keys, rounds: int) -> None:
    """A stage: passes on what comes, lane by lane, in the order in which it is sent."""
    lanes = open_lanes(load, keys)
    connect(lanes, pipe.send, pipe.recv)
    for _ in range(rounds):
        for lane in lanes:
            lane.send(lane.receive())
    for lane in lanes:
        lane.close()


def connect(lanes: list[Lane], tell: Callable[[list[str]], None], hear: Callable[[], list[str]]) -> None:
    """Tell the own addresses, hear the successor's, and connect."""
    tell([lane.address for lane in lanes])
    for lane, address in zip(lanes, hear(), strict=True):
        lane.connect(address)


def measure(stages: int, load: Load, rounds: int) -> Report:
    """Run the ring. The first rounds only warm it up."""
    with tempfile.TemporaryDirectory() as directory:
        generate_keys(Path(directory, "keys"))
        keys = load_keys(Path(directory, "keys"))
    context = multiprocessing.get_context("spawn")
    pipes = [context.Pipe() for _ in range(stages)]
    total = rounds + WARM_UP
    processes = [
        context.Process(target=relay, args=(there, load, keys, total), daemon=True, name=f"stage-{index}")
        for index, (_, there) in enumerate(pipes)
    ]
    for process in processes:
        process.start()
    lanes = open_lanes(load, keys)
    addresses = [here.recv() for here, _ in pipes]
    following = [*addresses[1:], [lane.address for lane in lanes]]
    for (here, _), successor in zip(pipes, following, strict=True):
        here.send(successor)
    connect(lanes, lambda _: None, lambda: addresses[0])
    frames = load.frames()
    samples: list[list[float]] = [[] for _ in lanes]
    for _ in range(total):
        for lane, times in zip(lanes, samples, strict=True):
            start = time.perf_counter()
            lane.send(frames)
            returned = lane.receive()
            times.append(1000 * (time.perf_counter() - start) / (stages + 1))
            if b"".join(bytes(frame) for frame in returned) != b"".join(bytes(frame) for frame in frames):
                raise RuntimeError("what came back is not what was sent")
    for lane in lanes:
        lane.close()
    for process in processes:
        process.join()
    bare, plain, curve = (statistics.median(times[WARM_UP:]) for times in samples)
    header = bytes(frames[0])
    message = decode(header)
    return Report(
        stages=stages,
        rows=load.rows,
        hidden=load.hidden,
        message_bytes=sum(len(frame) for frame in frames),
        rounds=rounds,
        cores=len(os.sched_getaffinity(0)),
        bare_tcp_ms=bare,
        plain_ms=plain,
        curve_ms=curve,
        plain_over_bare=plain / bare,
        curve_over_bare=curve / bare,
        header_bytes=len(header),
        header_encode_us=microseconds(lambda: encode(message)),
        header_decode_us=microseconds(lambda: decode(header)),
    )


def microseconds(call: Callable[[], object]) -> float:
    """Median over a few batches of calls."""
    batches = timeit.repeat(call, number=HEADER_CALLS // 10, repeat=10)
    return 1e6 * statistics.median(batches) / (HEADER_CALLS // 10)


def table(report: Report) -> str:
    return "\n".join([
        f"{report.stages} stages, {report.rows} rows of {report.hidden} in bfloat16: {report.message_bytes} bytes per "
        f"hop; {report.rounds} rounds on {report.cores} cores",
        "",
        "                    ms per hop   of bare TCP",
        f"bare TCP copy       {report.bare_tcp_ms:10.3f}",
        f"links without CURVE {report.plain_ms:10.3f}   {report.plain_over_bare:10.2f}x",
        f"links with CURVE    {report.curve_ms:10.3f}   {report.curve_over_bare:10.2f}x",
        "",
        f"header of {report.header_bytes} bytes: encode {report.header_encode_us:.1f} us, "
        f"decode and check {report.header_decode_us:.1f} us",
    ])  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.transport", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", type=int, default=14, help="processes in the ring, besides this one (14)")
    parser.add_argument("--rows", type=int, default=32, help="rows of a batch (32)")
    parser.add_argument("--hidden", type=int, default=8192, help="width of the activation (8192)")
    parser.add_argument("--rounds", type=int, default=30, help="measured rounds of each of the three (30)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    arguments = parser.parse_args()
    report = measure(arguments.stages, Load(arguments.rows, arguments.hidden), arguments.rounds)
    print(json.dumps(asdict(report)) if arguments.json else table(report))


if __name__ == "__main__":
    main()
