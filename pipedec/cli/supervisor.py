"""Keeps a few programs running: starts them, reads their output, restarts what ends, and in the end ends all."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # seconds before a restart; doubled each time
SETTLED = 60.0  # a program that ran this long is restarted without delay again
TAIL_LINES = 30
_LINE_BYTES = 1 << 16  # a longer line is cut

_TETHER = (sys.executable, "-I", "-S", str(Path(__file__).with_name("tether.py")))


@dataclass(frozen=True, slots=True)
class Program:
    """What to run, and under which name to speak of it."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Exit:
    """How a program ended: `code` as in subprocess (negative: the signal), and its last lines of output."""

    name: str
    code: int
    tail: tuple[str, ...]

    def __str__(self) -> str:
        if self.code >= 0:
            return f"{self.name} ended with exit code {self.code}"
        return f"{self.name} was killed by {signal.Signals(-self.code).name}"


@dataclass(slots=True)
class Observer:
    """What a supervisor tells; replace what is of interest."""

    started: Callable[[str, int], None] = field(default=lambda name, pid: None)
    line: Callable[[str, str], None] = field(default=lambda name, text: None)
    exited: Callable[[Exit, float | None], None] = field(default=lambda exit, delay: None)
    """The delay in seconds after which the program is started again; None: it is not."""


class Supervisor:
    """Runs programs until `stop`.

    While `restart` is false, the first program that ends ends all of them. On `stop` the first program is asked to end,
    and only when it has, the others: it may need them until then. After `grace` seconds they are killed.
    """

    def __init__(
        self, programs: Sequence[Program], observer: Observer, *, restart: bool = True, grace: float = 10.0
    ) -> None:
        self._programs, self._observer, self.restart, self._grace = tuple(programs), observer, restart, grace
        self._running: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._failure: Exit | None = None

    def stop(self) -> None:
        """Ask all programs to end; `run` then returns. A second call kills them."""
        if self._stopping.is_set():
            for process in self._running.values():
                _signal(process, signal.SIGKILL)
        self._stopping.set()

    def kill(self, name: str) -> None:
        """End a program that does not react any more, at once; what follows is as if it had ended by itself."""
        if name in self._running:
            _signal(self._running[name], signal.SIGKILL)

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    async def run(self) -> Exit | None:
        """Returns when all have ended: the exit that ended them, or None after `stop`."""
        keepers = {program.name: asyncio.create_task(self._keep(program)) for program in self._programs}
        first, *others = keepers
        try:
            await self._stopping.wait()
            await self._end({first: keepers[first]})
            await self._end({name: keepers[name] for name in others})
        finally:
            self._stopping.set()
            for process in self._running.values():
                _signal(process, signal.SIGKILL)
            await asyncio.gather(*keepers.values())
        return self._failure

    async def _end(self, keepers: Mapping[str, asyncio.Task[None]]) -> None:
        for number, seconds in ((signal.SIGTERM, self._grace), (signal.SIGKILL, None)):
            for name in keepers.keys() & self._running.keys():
                _signal(self._running[name], number)
            if keepers:
                await asyncio.wait(keepers.values(), timeout=seconds)

    async def _keep(self, program: Program) -> None:
        clock, delay = asyncio.get_running_loop().time, FIRST_DELAY
        while not self._stopping.is_set():
            started = clock()
            ended = await self._run_once(program)
            if self._stopping.is_set():
                return
            if not self.restart:
                self._failure = ended
                self._observer.exited(ended, None)
                self._stopping.set()
                return
            if clock() - started > SETTLED:
                delay = FIRST_DELAY
            self._observer.exited(ended, delay)
            await _wait(self._stopping, delay)
            delay = min(2 * delay, LONGEST_DELAY)

    async def _run_once(self, program: Program) -> Exit:
        # A session of its own, so that Ctrl-C in a terminal reaches this process alone, which then ends the others.
        process = await asyncio.create_subprocess_exec(
            *_TETHER,
            str(os.getpid()),
            *program.command,
            env=dict(program.environment),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )
        self._running[program.name] = process
        self._observer.started(program.name, process.pid)
        if self._stopping.is_set():  # asked to stop while this was being started
            _signal(process, signal.SIGTERM)
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        assert process.stdout is not None
        async for text in _lines(process.stdout):
            tail.append(text)
            self._observer.line(program.name, text)
        code = await process.wait()
        del self._running[program.name]
        return Exit(program.name, code, tuple(tail))


def _signal(process: asyncio.subprocess.Process, number: signal.Signals) -> None:
    if process.returncode is None:
        process.send_signal(number)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[str]:
    """Lines of output, decoded whatever they hold; a carriage return counts as the end of one."""
    rest = b""
    while chunk := await stream.read(_LINE_BYTES):
        *lines, rest = (rest + chunk).replace(b"\r", b"\n").split(b"\n")
        for line in (*lines, *([rest] if len(rest) > _LINE_BYTES else [])):
            if line.strip():
                yield line.decode(errors="replace").rstrip()
        rest = rest if len(rest) <= _LINE_BYTES else b""
    if rest.strip():
        yield rest.decode(errors="replace").rstrip()
