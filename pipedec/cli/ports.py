"""TCP ports for processes that are told their port before they listen."""

from __future__ import annotations

import random
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from pipedec.errors import PipeDecError

LOOPBACK = "127.0.0.1"
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")


def available(host: str, port: int) -> int:
    """The port, or for 0 some free one, once it is certain that it can be listened on. Raises `PipeDecError`."""
    if not host:
        raise PipeDecError(f"--host is empty; write {LOOPBACK}, or 0.0.0.0 for all addresses of this machine")
    try:
        _try(host, port)
    except (OSError, UnicodeError) as error:  # the latter of what cannot be a name
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        if port == 0:
            raise PipeDecError(f"no port of {host} can be had ({reason}); give an address of this machine") from error
        raise PipeDecError(
            f"port {port} of {host} cannot be had ({reason}); choose another with --port, or end what has it"
        ) from error
    return port or free_ports(1, host)[0]


def free_ports(count: int, host: str = LOOPBACK) -> list[int]:
    """Ports that nothing listens on, and that no outgoing connection is given either.

    A port of the ephemeral range will not do: a peer that already tries to connect to it may be given that very port
    as its own, and then talks to itself while the listener finds its address taken.
    """
    found = _free(host)
    return [next(found) for _ in range(count)]


@contextmanager
def held(addresses: Iterable[tuple[str, int]]) -> Iterator[None]:
    """Keep `free_ports` of other processes from giving these away, also while who listens there is started anew."""
    with ExitStack() as stack:
        for host, port in addresses if sys.platform == "linux" else ():  # elsewhere nobody could listen there then
            holder = stack.enter_context(socket.socket(_family(host)))
            holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            holder.bind((host, port))
        yield


def first_ephemeral() -> int:
    """The first port that the kernel may choose for who asks for any, as far as it lets us know."""
    lowest = int(_EPHEMERAL.read_text().split()[0]) if _EPHEMERAL.exists() else 0
    return lowest if lowest > 12000 else 32768


def _free(host: str) -> Iterator[int]:
    candidates = range(10000, first_ephemeral())
    for port in random.sample(candidates, len(candidates)):
        try:
            with socket.socket(_family(host)) as tried:
                tried.bind((host, port))  # without SO_REUSEADDR: what is `held` cannot be had
        except OSError:
            continue
        yield port


def _try(host: str, port: int) -> None:
    socket.create_server((host, port), family=_family(host)).close()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
