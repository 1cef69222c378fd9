"""ZeroMQ, and the policy of every link. The only file that imports zmq.

    channel   binds                 connects                 carries
    control   draft pod, ROUTER     each stage, DEALER       registration, formation, heartbeats, cancellation
    data      each stage, PULL      its predecessor, PUSH    batches
    verdicts  draft pod, PULL       last stage, PUSH         verdicts

Links are CURVE-encrypted, and authenticated both ways: who connects pins the server's key, and who binds asks the
ZAP handler of its `Transport`, which lets in the pipeline's client key alone. A link belongs to one thread. What
arrives is decoded and checked; what is malformed is counted and dropped.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, Generic, Literal, Protocol, TypeVar

import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from pipedec.errors import PipeDecError, ProtocolError
from pipedec.listening import known
from pipedec.logs import fields
from pipedec.wire import codec
from pipedec.wire.codec import MAX_HEADER_BYTES, BatchFrames, Buffer, FromHead, FromStage
from pipedec.wire.fields import MAX_ROWS
from pipedec.wire.keys import Keys, load_keys
from pipedec.wire.memory import keep_freed_memory
from pipedec.wire.messages import Verdict, is_address

INSECURE: Final = "insecure"  # in place of keys: neither encryption nor authentication

CONTROL_HWM = 1000  # messages queued per peer; a peer this far behind counts as unreachable
MAX_CONTROL_BYTES = 2**20
NO_COPY_BYTES = 2**16  # larger frames are sent from the caller's memory
HANDSHAKE_SECONDS = 1.0  # a connection without the key is counted as such when it has none for so long
DROPS_PER_RECEIVE = 64  # malformed messages skipped in one call, so that a flood cannot hold a loop
ZAP_DOMAIN = "pipedec"
POLICY: Final[dict[str, int | bytes]] = {
    "linger": 200,  # ms; what was sent last (a verdict, a Shutdown) still leaves
    "tcp_keepalive": 1,
    "heartbeat_ivl": 2000,  # ms; ZMTP pings, because a machine that vanishes sends no FIN
    "heartbeat_timeout": 10000,
    "reconnect_ivl": 50,
    "reconnect_ivl_max": 1000,
    "handshake_ivl": 5000,  # a connection that has not finished its handshake by then is cut
    "copy_threshold": NO_COPY_BYTES,
}
_IPV4 = re.compile(r"[0-9.]+(:|$)")
_HANDSHAKES = zmq.Event.ACCEPTED | zmq.Event.HANDSHAKE_SUCCEEDED

T = TypeVar("T")
_Socket = zmq.Socket[bytes]
_log = logging.getLogger(__name__)


def _in_address(host: str) -> str:
    """A host as an address has it: IPv6 in brackets."""
    host = host.strip("[]")
    return f"[{host}]" if ":" in host else host


@dataclass(frozen=True, slots=True)
class Bind:
    """Where to listen, and the host that peers are told, when it is another. Port 0: any free one."""

    host: str
    port: int = 0
    advertise: str = ""


class Transport(AbstractContextManager["Transport"]):
    """One process's ZeroMQ context, its keys, and the handler that says who may connect."""

    def __init__(self, keys: Keys | Literal["insecure"]) -> None:
        keep_freed_memory()
        self._keys = None if keys == INSECURE else keys
        self._context: zmq.Context[_Socket] = zmq.Context()
        self._links: set[Link] = set()
        self._authenticator: ThreadAuthenticator | None = None
        if self._keys is not None:
            self._authenticator = ThreadAuthenticator(self._context)
            self._authenticator.start()
            self._authenticator.configure_curve_callback(ZAP_DOMAIN, _OnlyClient(self._keys.client.public))

    @classmethod
    def open(cls, keys_dir: Path | None) -> Transport:
        """With the keys in a directory; None is for tests alone: anybody may connect, and read."""
        return cls(INSECURE if keys_dir is None else load_keys(keys_dir))

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every link, giving what was sent last a moment to leave. Closing twice is harmless."""
        for link in list(self._links):
            link.close()
        if self._authenticator is not None:
            self._authenticator.stop()
            self._authenticator = None
        self._context.term()

    def bind(self, kind: int, where: Bind, **policy: int | bytes) -> _Socket:
        """A socket that listens, with keys and policy. Raises `PipeDecError` when the address cannot be had."""
        host = _in_address(known(where.host))
        bound = self._open(kind, host, policy)
        if self._keys is not None:
            bound.curve_server = True
            bound.curve_secretkey = self._keys.server.secret
            bound.zap_domain = ZAP_DOMAIN.encode()
            bound.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without a handler, nobody gets in
        try:
            bound.bind(f"tcp://{host}:{where.port}")
        except zmq.ZMQError as error:
            bound.close()
            raise PipeDecError(f"cannot listen on {where.host}:{where.port}: {error.strerror}") from error
        return bound

    def connect(self, kind: int, address: str, **policy: int | bytes) -> _Socket:
        """A socket that connects, and reconnects for ever. Raises `ProtocolError` when that is no tcp:// address."""
        if not is_address(address):
            raise ProtocolError(f"an address must be tcp://host:port, not {address!r}")
        connected = self._open(kind, address.removeprefix("tcp://"), policy)
        if self._keys is not None:
            connected.curve_serverkey = self._keys.server.public
            connected.curve_publickey = self._keys.client.public
            connected.curve_secretkey = self._keys.client.secret
        try:
            connected.connect(address)
        except zmq.ZMQError as error:
            connected.close()
            raise ProtocolError(f"cannot connect to {address}: {error.strerror}") from error
        return connected

    def _open(self, kind: int, host: str, policy: dict[str, int | bytes]) -> _Socket:
        opened = self._context.socket(kind)
        # A name may be of either: with IPv6 libzmq takes what addresses there are, without it those of IPv4 alone.
        ipv6 = _IPV4.match(host) is None
        for option, value in (POLICY | {"ipv6": ipv6} | policy).items():
            setattr(opened, option, value)
        return opened

    def monitor(self, bound: _Socket) -> _Socket:
        """Where handshakes are reported. Unlimited: libzmq's I/O thread would wait for its reader."""
        reports = self._context.socket(zmq.PAIR)
        reports.rcvhwm = 0
        address = f"inproc://monitor-{id(bound)}"
        bound.monitor(address, _HANDSHAKES)
        reports.connect(address)
        return reports

    def adopt(self, link: Link) -> None:
        self._links.add(link)

    def release(self, link: Link) -> None:
        self._links.remove(link)


class _OnlyClient:
    """ZAP's question, answered: the client key of this pipeline, and no other."""

    def __init__(self, public: bytes) -> None:
        self._public = public

    def callback(self, domain: str, key: bytes) -> bool:
        return key == self._public


class Link:
    """What all links share. `malformed` counts messages dropped."""

    events: int = zmq.POLLIN

    def __init__(self, transport: Transport, pollable: _Socket, monitor: _Socket | None = None) -> None:
        self.pollable, self._monitor, self._transport = pollable, monitor, transport
        self.malformed, self._rejected = 0, 0
        self._unproven = self._least = 0  # connections without a handshake: now, and at least since `_since`
        self._since = time.monotonic()
        transport.adopt(self)

    @property
    def rejected(self) -> int:
        """Connections that came without the right key, or without ZMTP, and had their time for a handshake. Never less
        than before. To be read now and then: reading empties a queue."""
        while self._monitor is not None and self._monitor.poll(0):
            accepted = recv_monitor_message(self._monitor)["event"] == zmq.Event.ACCEPTED
            self._unproven += 1 if accepted else -1
        self._least = min(self._least, self._unproven)
        if (now := time.monotonic()) > self._since + HANDSHAKE_SECONDS:
            self._rejected, self._least, self._since = max(self._rejected, self._least), self._unproven, now
        return self._rejected

    def close(self) -> None:
        if self.pollable.closed:
            return
        if self._monitor is not None:
            self.pollable.disable_monitor()
            self._monitor.close(linger=0)
            self._monitor = None
        self.pollable.close()
        self._transport.release(self)

    def _receive(self, decode: Callable[[Sequence[Buffer]], T]) -> T | None:
        for _ in range(DROPS_PER_RECEIVE):
            try:
                frames = self.pollable.recv_multipart(zmq.NOBLOCK, copy=False)
                return decode([frame.buffer for frame in frames])
            except zmq.Again:
                return None
            except ProtocolError as error:
                self.malformed += 1
                if self.malformed & (self.malformed - 1) == 0:  # the 1st, 2nd, 4th, 8th: a flood fills no disk
                    _log.warning("malformed message dropped", extra=fields(so_far=self.malformed, reason=error))
        return None

    def _send(self, frames: Sequence[Buffer]) -> bool:
        for _ in range(2):
            try:
                self.pollable.send_multipart(frames, zmq.NOBLOCK, copy=False)
                return True
            except zmq.Again:
                # libzmq looks only about once a millisecond whether a full queue has drained, unless it is asked.
                if not self.pollable.poll(0, zmq.POLLOUT):
                    break
        return False


class _Bound(Link):
    """A link that listens. `address` is what peers connect to."""

    def __init__(self, transport: Transport, kind: int, where: Bind, **policy: int | bytes) -> None:
        bound = transport.bind(kind, where, **policy)
        super().__init__(transport, bound, transport.monitor(bound))
        port = bound.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0").rpartition(":")[2]
        self.address = f"tcp://{_in_address(where.advertise or where.host)}:{port}"


class ControlServer(_Bound):
    """The draft pod's end of the control channel. A peer is the identity that its stage chose."""

    def __init__(self, transport: Transport, where: Bind) -> None:
        # Mandatory: an unreachable peer is an error, not silence. Handover: a stage that reconnects takes its identity
        # over from the connection that died.
        policy: dict[str, int | bytes] = {"router_mandatory": 1, "router_handover": 1, "maxmsgsize": MAX_CONTROL_BYTES}
        super().__init__(transport, zmq.ROUTER, where, sndhwm=CONTROL_HWM, rcvhwm=CONTROL_HWM, **policy)

    def receive(self) -> tuple[bytes, FromStage] | None:
        """The next message and its peer; None when there is none now."""
        return self._receive(lambda frames: (bytes(frames[0]), codec.decode_from_stage(frames[1:])))

    def send(self, peer: bytes, message: FromHead) -> bool:
        """False when the peer is not connected, or does not read."""
        return self._route(peer, codec.encode(message))

    def send_all(self, peers: Iterable[bytes], message: FromHead) -> list[bytes]:
        """The same message to each; those peers that `send` would be false for."""
        header = codec.encode(message)
        return [peer for peer in peers if not self._route(peer, header)]

    def _route(self, peer: bytes, header: bytes) -> bool:
        try:
            return self._send([peer, header])
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False


class ControlClient(Link):
    """A stage's end of the control channel. `identity` must differ between processes: use the incarnation."""

    def __init__(self, transport: Transport, address: str, identity: str) -> None:
        policy: dict[str, int | bytes] = {"routing_id": identity.encode(), "maxmsgsize": MAX_CONTROL_BYTES}
        socket = transport.connect(zmq.DEALER, address, sndhwm=CONTROL_HWM, rcvhwm=CONTROL_HWM, **policy)
        super().__init__(transport, socket)

    def receive(self) -> FromHead | None:
        """The next message; None when there is none now."""
        return self._receive(codec.decode_from_head)

    def send(self, message: FromStage) -> bool:
        """False when the queue is full. What is sent before there is a connection waits for it."""
        return self._send([codec.encode(message)])


class DataSender(Link):
    """Batches to the successor, or verdicts to the draft pod. `credits`: how many can be in flight at most."""

    events = zmq.POLLOUT

    def __init__(self, transport: Transport, address: str, *, credits: int) -> None:
        # Immediate: nothing is queued for a peer that is not there. Twice the credits, because libzmq learns of free
        # places only when half of them are. Nothing ever comes back but ZMTP's own commands.
        socket = transport.connect(zmq.PUSH, address, sndhwm=2 * credits, immediate=1, maxmsgsize=MAX_CONTROL_BYTES)
        super().__init__(transport, socket)
        self.address = address

    def connected(self, timeout: float = 0.0) -> bool:
        """Whether the peer is connected and authenticated; waits up to `timeout` seconds."""
        return bool(self.pollable.poll(round(timeout * 1000), zmq.POLLOUT))

    def send(self, *frames: Buffer) -> bool:
        """False, and nothing sent, when there is no peer or its queue is full. Large frames are not copied: they must
        not change afterwards."""
        return self._send(frames)


class DataReceiver(_Bound, Generic[T]):
    """Where batches, or verdicts, arrive."""

    def __init__(
        self,
        transport: Transport,
        where: Bind,
        decode: Callable[[Sequence[Buffer]], T],
        max_bytes: int,
        credits: int,
    ) -> None:
        super().__init__(transport, zmq.PULL, where, rcvhwm=credits, maxmsgsize=max_bytes)
        self._decode = decode

    def receive(self) -> T | None:
        """The next one; None when there is none now."""
        return self._receive(self._decode)


def batch_receiver(
    transport: Transport, where: Bind, *, row_bytes: int | None, credits: int
) -> DataReceiver[BatchFrames]:
    """Batches, with activations of `row_bytes` per row; None at stage 0, which gets none."""
    decode = partial(codec.decode_batch, row_bytes=row_bytes)
    max_bytes = max(MAX_HEADER_BYTES, MAX_ROWS * (row_bytes or 0))
    return DataReceiver(transport, where, decode, max_bytes, credits)


def verdict_receiver(transport: Transport, where: Bind, *, credits: int) -> DataReceiver[Verdict]:
    """Verdicts, at the draft pod."""
    return DataReceiver(transport, where, codec.decode_verdict, MAX_HEADER_BYTES, credits)


class Pollable(Protocol):
    """What a `Poller` waits for: a link, or a `Wakeup`."""

    @property
    def events(self) -> int: ...

    @property
    def pollable(self) -> _Socket | int: ...


class Poller:
    """Waits for any of several sources. A receiver is ready with a message, a sender with a peer that takes one."""

    def __init__(self, *sources: Pollable) -> None:
        self._sources: dict[object, Pollable] = {}
        self._poller = zmq.Poller()
        for source in sources:
            self.watch(source)

    def watch(self, source: Pollable) -> None:
        self._sources[source.pollable] = source
        self._poller.register(source.pollable, source.events)

    def forget(self, source: Pollable) -> None:
        del self._sources[source.pollable]
        self._poller.unregister(source.pollable)

    def wait(self, timeout: float | None) -> list[Pollable]:
        """What is ready, after at most `timeout` seconds; None waits for ever."""
        milliseconds = None if timeout is None else max(0, round(timeout * 1000))
        return [self._sources[ready] for ready, _ in self._poller.poll(milliseconds)]
