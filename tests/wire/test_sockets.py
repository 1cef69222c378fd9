"""Links over real TCP ports: what belongs arrives, what does not is counted, and the process lives."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import Literal

import pytest
import torch

from pipedec.errors import PipeDecError, ProtocolError
from pipedec.model.tensors import from_buffer, to_buffer
from pipedec.wire.codec import Activation, BatchFrames, encode, encode_activation
from pipedec.wire.keys import Keys
from pipedec.wire.messages import Batch, Formation, Heartbeat, Joined, Refused, Register, Row, Rows, Verdict
from pipedec.wire.sockets import (
    DROPS_PER_RECEIVE,
    INSECURE,
    MAX_CONTROL_BYTES,
    Bind,
    ControlClient,
    ControlServer,
    DataReceiver,
    DataSender,
    Poller,
    Transport,
    batch_receiver,
    verdict_receiver,
)
from pipedec.wire.wakeup import Wakeup
from tests.sockets import DEADLINE, receive, until

Open = Callable[[Keys | Literal["insecure"]], Transport]
HERE = Bind("127.0.0.1")
WIDTH = 2048
ROW_BYTES = 2 * WIDTH
CREDITS = 4


def a_batch(rows: int = 32, step: int = 0) -> Batch:
    return Batch(3, step, (), Rows.of([Row(1, i, i - 1, 7, i, i, tuple(range(i))) for i in range(rows)]))


def activation(rows: int = 32) -> torch.Tensor:
    return torch.randn(rows, WIDTH, dtype=torch.bfloat16)


def verdicts(transport: Transport) -> DataReceiver[Verdict]:
    return verdict_receiver(transport, HERE, credits=CREDITS)


def sender_to(transport: Transport, receiver: DataReceiver[Verdict] | DataReceiver[BatchFrames]) -> DataSender:
    sender = DataSender(transport, receiver.address, credits=CREDITS)
    assert sender.connected(DEADLINE)
    return sender


@pytest.mark.parametrize("secure", [True, False], ids=["curve", "insecure"])
def test_batches_arrive_bit_for_bit(open_transport: Open, keys: Keys, secure: bool) -> None:
    transport = open_transport(keys if secure else INSECURE)
    receiver = batch_receiver(transport, HERE, row_bytes=ROW_BYTES, credits=CREDITS)
    sender = sender_to(transport, receiver)
    hidden, batch = activation(), a_batch()
    for _ in range(3):
        assert sender.send(encode(batch), *encode_activation(Activation(to_buffer(hidden), len(hidden))))
    for _ in range(3):
        received = receive(receiver, receiver.receive)
        assert received.batch == batch
        assert received.header == encode(batch)
        assert received.activation is not None
        assert torch.equal(from_buffer(received.activation.data, torch.bfloat16, (32, WIDTH)), hidden)
    assert receiver.receive() is None
    assert (receiver.malformed, receiver.rejected) == (0, 0)


def test_a_received_tensor_shares_the_received_bytes(open_transport: Open) -> None:
    transport = open_transport(INSECURE)
    receiver = batch_receiver(transport, HERE, row_bytes=ROW_BYTES, credits=CREDITS)
    sender = sender_to(transport, receiver)
    sender.send(encode(a_batch()), *encode_activation(Activation(to_buffer(activation()), 32)))
    received = receive(receiver, receiver.receive)
    assert received.activation is not None
    tensor = from_buffer(received.activation.data, torch.bfloat16, (32, WIDTH))
    tensor.zero_()
    assert bytes(received.activation.data) == bytes(32 * ROW_BYTES)


@pytest.mark.parametrize("who", ["no keys", "another pipeline", "another client key", "another server key"])
def test_who_has_not_both_keys_delivers_nothing(open_transport: Open, keys: Keys, other_keys: Keys, who: str) -> None:
    intruder_keys: dict[str, Keys | Literal["insecure"]] = {
        "no keys": INSECURE,
        "another pipeline": other_keys,
        "another client key": Keys(keys.server, other_keys.client),
        "another server key": Keys(other_keys.server, keys.client),
    }
    transport = open_transport(keys)
    receiver, server = verdicts(transport), ControlServer(transport, HERE)
    intruder = open_transport(intruder_keys[who])
    sender = DataSender(intruder, receiver.address, credits=CREDITS)
    client = ControlClient(intruder, server.address, "intruder")
    client.send(Joined(1, 0))  # queued, or not even that when the refusal comes first
    until(lambda: receiver.rejected > 0 and server.rejected > 0)
    assert not sender.connected()
    assert not sender.send(encode(Verdict(1, 0)))
    friend = sender_to(transport, receiver)
    friend.send(encode(Verdict(1, 1)))
    assert receive(receiver, receiver.receive) == Verdict(1, 1)
    assert receiver.receive() is None
    assert server.receive() is None


def test_a_listener_without_keys_takes_nobody_with_keys(open_transport: Open, keys: Keys) -> None:
    receiver = verdicts(open_transport(INSECURE))
    sender = DataSender(open_transport(keys), receiver.address, credits=CREDITS)
    until(lambda: receiver.rejected > 0)
    assert not sender.connected()


@pytest.mark.parametrize("secure", [True, False], ids=["curve", "insecure"])
def test_garbage_on_the_port_harms_nobody(open_transport: Open, keys: Keys, secure: bool) -> None:
    transport = open_transport(keys if secure else INSECURE)
    receiver = verdicts(transport)
    sender = sender_to(transport, receiver)
    port = int(receiver.address.rpartition(":")[2])
    noises = (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(60),
        b"\0" * 99,
        os.urandom(4096),
    )
    for noise in noises:
        with socket.create_connection(("127.0.0.1", port)) as peer:
            peer.sendall(noise)
    until(lambda: receiver.rejected >= len(noises))
    assert sender.send(encode(Verdict(1, 1)))
    assert receive(receiver, receiver.receive) == Verdict(1, 1)


def test_malformed_messages_are_counted_and_the_next_is_taken(open_transport: Open, keys: Keys) -> None:
    transport = open_transport(keys)
    receiver = batch_receiver(transport, HERE, row_bytes=ROW_BYTES, credits=64)
    sender = DataSender(transport, receiver.address, credits=64)
    assert sender.connected(DEADLINE)
    header, data = encode(a_batch(2)), bytes(2 * ROW_BYTES)
    bad = [
        (b"",),
        (os.urandom(100),),
        (header,),
        (header, b"", data[:-1]),
        (header, b"x", data),
        (header, b"", data, b""),
        (encode(Verdict(1, 0)), b"", b""),
        (header[:-1], b"", data),
    ]
    for frames in bad:
        assert sender.send(*frames)
    assert sender.send(header, b"", data)
    assert receive(receiver, receiver.receive).batch == a_batch(2)
    assert receiver.malformed == len(bad)


def test_a_flood_of_malformed_messages_does_not_hold_the_loop(open_transport: Open) -> None:
    transport = open_transport(INSECURE)
    receiver = verdict_receiver(transport, HERE, credits=1000)
    sender = DataSender(transport, receiver.address, credits=1000)
    assert sender.connected(DEADLINE)
    for _ in range(3 * DROPS_PER_RECEIVE):
        assert sender.send(b"junk")
    assert sender.send(encode(Verdict(1, 1)))
    before = 0
    while (verdict := receiver.receive()) is None:
        assert receiver.malformed - before <= DROPS_PER_RECEIVE
        before = receiver.malformed
        Poller(receiver).wait(DEADLINE)
    assert verdict == Verdict(1, 1)
    assert receiver.malformed == 3 * DROPS_PER_RECEIVE


@pytest.mark.parametrize("credits", [1, 2, 4])
def test_who_keeps_to_the_credits_is_never_held_up(open_transport: Open, credits: int) -> None:
    transport = open_transport(INSECURE)
    receiver = verdict_receiver(transport, HERE, credits=credits)
    sender = DataSender(transport, receiver.address, credits=credits)
    assert sender.connected(DEADLINE)
    for step in range(credits - 1):
        assert sender.send(encode(Verdict(1, step)))
    for step in range(300):
        assert sender.send(encode(Verdict(1, step + credits - 1)))
        assert receive(receiver, receiver.receive) == Verdict(1, step)


def test_a_frame_over_the_limit_ends_the_connection_alone(open_transport: Open, keys: Keys) -> None:
    transport = open_transport(keys)
    server = ControlServer(transport, HERE)
    client, other = ControlClient(transport, server.address, "a"), ControlClient(transport, server.address, "b")
    huge = Register(0, 1, (0, 1), "r", "tcp://h:1", 1, "i", 1, "float32")
    client.pollable.send(bytes(MAX_CONTROL_BYTES + 1))
    other.send(huge)
    assert receive(server, server.receive) == (b"b", huge)
    client.send(Joined(1, 0))  # connected anew, under the old name
    assert receive(server, server.receive) == (b"a", Joined(1, 0))
    assert server.malformed == 0


def test_control_messages_find_their_peer(open_transport: Open, keys: Keys) -> None:
    transport = open_transport(keys)
    server = ControlServer(transport, Bind("127.0.0.1", 0, "localhost"))
    assert server.address.startswith("tcp://localhost:")
    clients = {name: ControlClient(transport, server.address, name) for name in ("one", "two")}
    for name, client in clients.items():
        client.send(Heartbeat(1, 0, 0))
        assert receive(server, server.receive) == (name.encode(), Heartbeat(1, 0, 0))
    assert server.send(b"two", Formation(4, "tcp://h:1", 8))
    assert receive(clients["two"], clients["two"].receive) == Formation(4, "tcp://h:1", 8)
    assert clients["one"].receive() is None
    assert not server.send(b"nobody", Refused("who?"))
    clients["one"].close()
    until(lambda: not server.send(b"one", Refused("gone?")))


def test_a_stage_that_reconnects_takes_over_its_name(open_transport: Open, keys: Keys) -> None:
    transport = open_transport(keys)
    server = ControlServer(transport, HERE)
    old = ControlClient(transport, server.address, "stage")
    old.send(Joined(1, 0))
    assert receive(server, server.receive) == (b"stage", Joined(1, 0))
    new = ControlClient(transport, server.address, "stage")
    new.send(Joined(2, 0))
    assert receive(server, server.receive) == (b"stage", Joined(2, 0))
    assert server.send(b"stage", Refused("x"))
    assert receive(new, new.receive) == Refused("x")
    assert old.receive() is None


def test_nothing_is_queued_for_a_successor_that_is_not_there(open_transport: Open, keys: Keys) -> None:
    transport = open_transport(keys)
    receiver = verdicts(transport)
    sender = sender_to(transport, receiver)
    receiver.close()
    until(lambda: not sender.connected())
    assert not sender.send(encode(Verdict(1, 0)))


@pytest.mark.parametrize(
    "address", ["inproc://x", "tcp://host", "tcp://host:1:2x", "ipc:///tmp/x", "tcp://:1", "tcp://h:65536", "tcp://h:0"]
)
def test_addresses_from_peers_are_checked(open_transport: Open, address: str) -> None:
    with pytest.raises(ProtocolError, match="an address must be tcp://host:port, not"):
        DataSender(open_transport(INSECURE), address, credits=1)


@pytest.mark.parametrize(
    ("peer", "six"),
    [(name, six) for name in ("127.0.0.1", socket.gethostname()) for six in (True, False)] + [("::1", True)],
)
def test_every_address_is_listened_on(
    open_transport: Open, keys: Keys, monkeypatch: pytest.MonkeyPatch, peer: str, six: bool
) -> None:
    if six and not socket.has_dualstack_ipv6():
        pytest.skip("without IPv6")
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: six)
    transport = open_transport(keys)
    sender_to(transport, verdict_receiver(transport, Bind("::", advertise=peer), credits=CREDITS))


def test_a_pod_address_of_ipv6_is_told_in_brackets(open_transport: Open) -> None:
    transport = open_transport(INSECURE)
    control = ControlServer(transport, Bind("127.0.0.1", advertise="fd00::1"))
    port = control.address.rpartition(":")[2]
    assert control.address == f"tcp://[fd00::1]:{port}"
    DataSender(transport, control.address, credits=1)


def test_a_taken_port_is_named(open_transport: Open) -> None:
    transport = open_transport(INSECURE)
    port = int(verdicts(transport).address.rpartition(":")[2])
    with pytest.raises(PipeDecError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
        ControlServer(transport, Bind("127.0.0.1", port))


def test_another_thread_wakes_a_wait(open_transport: Open) -> None:
    receiver, wakeup = verdicts(open_transport(INSECURE)), Wakeup()
    poller = Poller(receiver, wakeup)
    assert poller.wait(0) == []
    thread = threading.Thread(target=wakeup.set)
    thread.start()
    assert poller.wait(DEADLINE) == [wakeup]
    thread.join()
    for _ in range(100_000):  # more than a socket buffer holds
        wakeup.set()
    wakeup.clear()
    assert poller.wait(0) == []
    wakeup.close()
