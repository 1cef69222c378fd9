"""Starts programs: each from its file, or, where that is as good, as a fork of a process that has imported PyTorch."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipedec.errors import PipeDecError
from pipedec.processes.fork_server import PACKET_BYTES

# What takes long to be imported, and every process of a pipeline needs.
HEAVY_MODULES = ("pipedec.model.executor", "pipedec.model.loader", "pipedec.metrics", "pipedec.wire.sockets")
# Of an NVIDIA GPU, one of AMD, one that Windows lends to Linux, one of a Jetson.
_GPUS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvmap")
# NumPy's threads, which are there once it is imported; none of our processes gives them anything to do.
_NO_THREADS = {"OPENBLAS_NUM_THREADS": "1"}
_TETHER = (sys.executable, "-I", "-S", str(Path(__file__).with_name("tether.py")))


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, and under which name to speak of it."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]
    may_fork: bool = False
    """Whether it is `python -m ...`, and nothing that libraries read as they are imported differs in its environment
    from what it is for the first such program."""


@dataclass(frozen=True, slots=True)
class Child:
    """A program that runs: its output, how it can be signalled, its exit code as in subprocess."""

    pid: int
    output: asyncio.StreamReader
    send_signal: Callable[[int], None]
    ended: asyncio.Future[int]


class CannotStart(PipeDecError):
    """A program could not be started; `code` is the exit code that tells of it."""

    def __init__(self, reason: str, code: int = 1) -> None:
        super().__init__(f"cannot be started: {reason}")
        self.code = code


def forks_are_as_good() -> bool:
    """Not where there is a GPU, which a fork could not use if a module that was imported had looked at it."""
    return sys.platform == "linux" and not any(Path(device).exists() for device in _GPUS)


class Launcher:
    """Starts programs as children that the kernel kills when this process dies. `modules` are imported before forks."""

    def __init__(self, modules: Sequence[str] = HEAVY_MODULES, *, fork: bool | None = None) -> None:
        self._modules, self._fork = tuple(modules), forks_are_as_good() if fork is None else fork
        self._server: _ForkServer | None = None

    async def start(self, program: Program) -> Child:
        """Raises `CannotStart`."""
        try:
            if not (self._fork and program.may_fork):
                return await _execute(program)
            if self._server is None or self._server.gone:
                self._server = _ForkServer({**program.environment, **_NO_THREADS}, self._modules)
                await self._server.open()
            return await self._server.start(program)
        except OSError as error:
            raise CannotStart(str(error)) from error

    def give_up(self) -> None:
        """Let programs that are still to be started not be."""
        if self._server is not None and not self._server.has_started:
            self._server.kill()

    async def close(self) -> None:
        """Once all have ended."""
        if self._server is not None:
            await self._server.close()


async def _execute(program: Program) -> Child:
    process = await _tethered(
        program.command, program.environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    assert process.stdout is not None

    def send_signal(number: int) -> None:
        if process.returncode is None:
            process.send_signal(number)

    return Child(process.pid, process.stdout, send_signal, asyncio.ensure_future(process.wait()))


async def _tethered(
    command: Sequence[str], environment: Mapping[str, str], **more: object
) -> asyncio.subprocess.Process:
    # A session of its own, so that Ctrl-C in a terminal reaches this process alone, which then ends the others.
    return await asyncio.create_subprocess_exec(
        *_TETHER,
        str(os.getpid()),
        *command,
        env=dict(environment),
        stdin=asyncio.subprocess.DEVNULL,
        start_new_session=True,
        **more,  # type: ignore[arg-type]
    )


class _ForkServer:
    """`pipedec.processes.fork_server`, spoken to. When it dies, all that it started does."""

    def __init__(self, environment: Mapping[str, str], modules: Sequence[str]) -> None:
        self._environment, self._modules = dict(environment), modules
        self._link, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._link.setblocking(False)
        self._process: asyncio.subprocess.Process | None = None
        self._watching: asyncio.Task[None] | None = None
        self._starting: dict[str, asyncio.Future[tuple[int, asyncio.Future[int]]]] = {}
        self._running: dict[int, asyncio.Future[int]] = {}
        self.gone, self.has_started, self._unwanted = False, False, False

    async def open(self) -> None:
        asyncio.get_running_loop().add_reader(self._link, self._hear)
        descriptor = self._theirs.fileno()
        command = (sys.executable, "-m", "pipedec.processes.fork_server", str(descriptor), *self._modules)
        try:
            self._process = await _tethered(command, self._environment, pass_fds=(descriptor,))
        except OSError as error:
            self._lose(CannotStart(str(error)))
            raise
        finally:
            self._theirs.close()
        self._watching = asyncio.create_task(self._watch(self._process))
        if self._unwanted:
            self.kill()

    async def start(self, program: Program) -> Child:
        module, *arguments = program.command[2:]
        wanted, own = program.environment, self._environment
        changes: dict[str, str | None] = dict.fromkeys(own.keys() - wanted.keys() - _NO_THREADS.keys())
        changes |= {name: value for name, value in wanted.items() if own.get(name) != value}
        asked = {"start": program.name, "module": module, "arguments": arguments, "environment": changes}
        loop = asyncio.get_running_loop()
        started = self._starting[program.name] = loop.create_future()
        ours, theirs = os.pipe()
        pipe, output = os.fdopen(ours, "rb", 0), asyncio.StreamReader()
        try:
            try:
                socket.send_fds(self._link, [json.dumps(asked).encode()], [theirs])
            finally:
                os.close(theirs)
            pid, ended = await started
        except BaseException:
            started.cancel()
            pipe.close()
            raise
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(output), pipe)
        return Child(pid, output, lambda number: self._tell(signal=number, pid=pid), ended)

    def kill(self) -> None:
        self._unwanted = True
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def close(self) -> None:
        self.kill()
        if self._watching is not None:
            await self._watching

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        code = await process.wait()
        while self._hear():
            pass
        self._lose(CannotStart(f"what was to fork it ended with exit code {code}", code))

    def _lose(self, reason: CannotStart) -> None:
        asyncio.get_running_loop().remove_reader(self._link)
        self._link.close()
        self.gone = True
        for starting in self._starting.values():
            if not starting.done():  # not when nobody waits for it any more
                starting.set_exception(reason)
        for running in self._running.values():
            running.set_result(-signal.SIGKILL)

    def _tell(self, **message: object) -> None:
        if not self.gone:
            with suppress(ConnectionError):  # it has just died, and with it all that there was to signal
                self._link.send(json.dumps(message).encode())

    def _hear(self) -> bool:
        """Whether there was something to hear, and there may be more."""
        try:
            packet = self._link.recv(PACKET_BYTES)
        except BlockingIOError:
            return False
        except ConnectionError:  # it died before it had read all that was asked
            packet = b""
        if not packet:  # and there never will be one
            asyncio.get_running_loop().remove_reader(self._link)
            return False
        told = json.loads(packet)
        if "started" in told:
            self.has_started = True
            ended = self._running[told["pid"]] = asyncio.get_running_loop().create_future()
            if not (starting := self._starting.pop(told["started"])).done():
                starting.set_result((told["pid"], ended))
        else:
            self._running.pop(told["ended"]).set_result(told["code"])
        return True
