"""Ports that can be listened on."""

from __future__ import annotations

import socket
import sys

import pytest

from pipedec.cli.ports import LOOPBACK, available, free_ports, held
from pipedec.errors import PipeDecError


def test_free_ports_differ_and_can_be_had() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(10000 <= port < 32768 for port in ports)
    assert [available(LOOPBACK, port) for port in ports] == ports
    assert 10000 <= available("::1", 0) < 32768


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no port can be held that another is to listen on")
def test_who_holds_a_port_alone_may_start_to_listen_on_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    taken, free = free_ports(2)
    with held([(LOOPBACK, taken)]):
        for _ in range(2):
            with socket.create_server((LOOPBACK, taken)), socket.create_connection((LOOPBACK, taken)):
                pass
        monkeypatch.setattr("random.sample", lambda *_: [taken, free])
        assert free_ports(1) == [free]


def test_a_taken_port_is_named_with_a_remedy() -> None:
    with socket.create_server((LOOPBACK, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            PipeDecError, match=f"port {port} of {LOOPBACK} cannot be had .* choose another with --port"
        ):
            available(LOOPBACK, port)


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("", "--host is empty; write 127.0.0.1"),
        ("192.0.2.1", r"no port of 192\.0\.2\.1 can be had \(Cannot assign requested address\)"),
        ("a" * 64, "can be had"),
    ],
)
def test_an_address_without_any_port_is_refused(host: str, words: str) -> None:
    with pytest.raises(PipeDecError, match=words):
        available(host, 0)


def test_an_address_that_is_not_ours_is_refused() -> None:
    with pytest.raises(
        PipeDecError, match=r"port 80 of 192\.0\.2\.1 cannot be had \(Cannot assign requested address\)"
    ):
        available("192.0.2.1", 80)
