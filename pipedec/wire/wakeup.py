"""A way for one thread to end another thread's wait."""

from __future__ import annotations

import select
import socket


class Wakeup:
    """Ends another thread's `Poller.wait`. `set` may be called from any thread or signal handler, also after `close`;
    the one that waits calls `clear`."""

    events = select.POLLIN

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    @property
    def pollable(self) -> int:
        return self._reader.fileno()

    def set(self) -> None:
        try:
            self._writer.send(b"\0")
        except BlockingIOError:
            return  # full of wake-ups that nobody has read yet: one more says nothing new
        except OSError:
            if self._writer.fileno() != -1:
                raise  # otherwise it was closed meanwhile, by one that does not wait any more

    def clear(self) -> None:
        try:
            while self._reader.recv(4096):
                continue
        except BlockingIOError:
            return

    def close(self) -> None:
        self._reader.close()
        self._writer.close()
