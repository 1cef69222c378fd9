"""`python -m pipedec.processes.fork_server SOCKET MODULE...`: imports the modules, then forks once for each program.

PyTorch and transformers take seconds of a processor to be imported; a pipeline of this machine needs them in every
process. A fork has them at once, and shares their memory. Messages are JSON, one to a packet of SOCKET (a file
descriptor): asked are {"start": name, "module", "arguments", "environment"}, with the descriptor of its output, and
{"signal": number, "pid"}; told are {"started": name, "pid"} and {"ended": pid, "code"}.

It never touches a GPU: a fork of a process that has would get no use of it. Were a module to start a thread, which a
fork lacks, programs would be started as ever.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import selectors
import signal
import socket
import sys
from dataclasses import dataclass
from importlib import import_module

from pipedec.garbage import importing
from pipedec.processes.tether import die_with

PACKET_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Asked:
    """A program that a fork is to become; of its environment, what differs from the server's (None: to be removed)."""

    module: str
    arguments: list[str]
    environment: dict[str, str | None]


def main() -> None:
    link, modules = socket.socket(fileno=int(sys.argv[1])), sys.argv[2:]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: whoever asks ends what is to end
    with importing():
        for module in modules:
            import_module(module)
    gc.freeze()  # collections would write to the memory that forks share
    alone = len(os.listdir("/proc/self/task")) == 1
    asked = _Server(link).serve()
    if asked is not None:
        _become(asked, alone)


class _Server:
    def __init__(self, link: socket.socket) -> None:
        self._link, self._children = link, set[int]()
        self._wakeup, wake = socket.socketpair()
        self._wakeup.setblocking(False)
        wake.setblocking(False)
        self._wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)

    def serve(self) -> Asked | None:
        """Returns in every fork, with what it is to become, and here when nobody is left who could ask."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._link, selectors.EVENT_READ)
            selector.register(self._wakeup, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._wakeup:
                        self._wakeup.recv(PACKET_BYTES)
                        self._reap()
                        continue
                    packet, descriptors, _, _ = socket.recv_fds(self._link, PACKET_BYTES, 1)
                    if not packet:
                        return None
                    message = json.loads(packet)
                    if "signal" in message:
                        if message["pid"] in self._children:
                            os.kill(message["pid"], message["signal"])
                    elif self._is_fork(message["start"], descriptors[0]):
                        return Asked(message["module"], message["arguments"], message["environment"])

    def _is_fork(self, name: str, output: int) -> bool:
        server, child = os.getpid(), os.fork()
        if child == 0:
            self._let_go(server, output)
            return True
        os.close(output)
        self._children.add(child)
        self._tell(started=name, pid=child)
        return False

    def _let_go(self, server: int, output: int) -> None:
        """In a fork: nothing of the server's is kept."""
        die_with(server)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for end in (self._link, self._wakeup, self._wake):
            end.close()
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)

    def _reap(self) -> None:
        for child in list(self._children):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                self._children.remove(child)
                self._tell(ended=child, code=os.waitstatus_to_exitcode(status))

    def _tell(self, **message: object) -> None:
        self._link.send(json.dumps(message).encode())


def _become(asked: Asked, here: bool) -> None:
    """What `python -m MODULE ARGUMENTS` is, `here` or in place of this process."""
    for name, value in asked.environment.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
    if not here:
        os.execv(sys.executable, [sys.executable, "-m", asked.module, *asked.arguments])
    sys.argv = [asked.module, *asked.arguments]
    runpy.run_module(asked.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
