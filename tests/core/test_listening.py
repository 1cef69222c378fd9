"""`::` is every address, whatever families the machine has."""

from __future__ import annotations

import socket

import pytest

from pipedec.listening import listen


@pytest.mark.parametrize("six", [True, False])
def test_every_address_is_listened_on(monkeypatch: pytest.MonkeyPatch, six: bool) -> None:
    if six and not socket.has_dualstack_ipv6():
        pytest.skip("without IPv6")
    monkeypatch.setattr(socket, "has_dualstack_ipv6", lambda: six)
    with listen("::", 0) as listener:
        assert listener.family == (socket.AF_INET6 if six else socket.AF_INET)
        for host in ("127.0.0.1", "::1") if six else ("127.0.0.1",):
            socket.create_connection((host, listener.getsockname()[1])).close()


def test_one_address_is_that_alone() -> None:
    with listen("127.0.0.1", 0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"
