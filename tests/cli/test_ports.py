"""Ports that can be listened on."""

from __future__ import annotations

import socket

import pytest

from pipedec.cli.ports import LOOPBACK, available, free_ports
from pipedec.errors import PipeDecError


def test_free_ports_differ_and_can_be_had() -> None:
    ports = free_ports(5)
    assert len(set(ports)) == 5
    assert all(10000 <= port < 32768 for port in ports)
    assert [available(LOOPBACK, port) for port in ports] == ports
    assert 10000 <= available("::1", 0) < 32768


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
