"""Keeps a few programs running: starts them, reads their output, restarts what ends, and in the end ends all."""

from __future__ import annotations

import asyncio
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipedec.processes.launcher import CannotStart, Child, Launcher, Program

FIRST_DELAY, LONGEST_DELAY = 1.0, 30.0  # seconds before a restart; doubled each time
SETTLED = 60.0  # a program that ran this long is restarted without delay again
TAIL_LINES = 30
_LINE_BYTES = 1 << 16  # a longer line is cut


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
        self,
        programs: Sequence[Program],
        observer: Observer,
        *,
        restart: bool = True,
        grace: float = 10.0,
        launcher: Launcher | None = None,
    ) -> None:
        self._programs, self._observer, self.restart, self._grace = tuple(programs), observer, restart, grace
        self._launcher = launcher or Launcher()
        self._running: dict[str, Child] = {}
        self._stopping = asyncio.Event()
        self._failure: Exit | None = None

    def stop(self) -> None:
        """Ask all programs to end; `run` then returns. A second call kills them."""
        if self._stopping.is_set():
            for child in self._running.values():
                child.send_signal(signal.SIGKILL)
        self._stopping.set()

    def kill(self, name: str) -> None:
        """End a program that does not react any more, at once; what follows is as if it had ended by itself."""
        if name in self._running:
            self._running[name].send_signal(signal.SIGKILL)

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    async def run(self) -> Exit | None:
        """Returns when all have ended: the exit that ended them, or None after `stop`."""
        keepers = {program.name: asyncio.create_task(self._keep(program)) for program in self._programs}
        first, *others = keepers
        try:
            await self._stopping.wait()
            self._launcher.give_up()
            await self._end({first: keepers[first]})
            await self._end({name: keepers[name] for name in others})
        finally:
            self._stopping.set()
            for child in self._running.values():
                child.send_signal(signal.SIGKILL)
            await asyncio.gather(*keepers.values())
            await self._launcher.close()
        return self._failure

    async def _end(self, keepers: Mapping[str, asyncio.Task[None]]) -> None:
        for number, seconds in ((signal.SIGTERM, self._grace), (signal.SIGKILL, None)):
            for name in keepers.keys() & self._running.keys():
                self._running[name].send_signal(number)
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
        try:
            child = await self._launcher.start(program)
        except CannotStart as error:
            return Exit(program.name, error.code, (str(error),))
        self._running[program.name] = child
        self._observer.started(program.name, child.pid)
        if self._stopping.is_set():  # asked to stop while this was being started
            child.send_signal(signal.SIGTERM)
        tail: deque[str] = deque(maxlen=TAIL_LINES)
        async for text in _lines(child.output):
            tail.append(text)
            self._observer.line(program.name, text)
        code = await child.ended
        del self._running[program.name]
        return Exit(program.name, code, tuple(tail))


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
