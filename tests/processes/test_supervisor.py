"""The supervisor, with small real programs as its children."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from pipedec.processes import supervisor as module
from pipedec.processes.launcher import Program
from pipedec.processes.supervisor import Exit, Observer, Supervisor

SLEEPER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("up", flush=True)
time.sleep(60)
"""
STUBBORN = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(60)
"""


def program(name: str, code: str) -> Program:
    return Program(name, (sys.executable, "-I", "-S", "-c", code), dict(os.environ))


class Record(Observer):
    """Everything told, and events to wait for."""

    def __init__(self) -> None:
        super().__init__(self._started, self._line, self._exited)
        self.pids: list[tuple[str, int]] = []
        self.lines: list[tuple[str, str]] = []
        self.exits: list[tuple[Exit, float | None]] = []
        self._news = asyncio.Event()

    def _started(self, name: str, pid: int) -> None:
        self.pids.append((name, pid))
        self._news.set()

    def _line(self, name: str, text: str) -> None:
        self.lines.append((name, text))
        self._news.set()

    def _exited(self, exit: Exit, delay: float | None) -> None:
        self.exits.append((exit, delay))
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, 30))


def test_all_run_and_end_in_order() -> None:
    """The first program ends before the others are asked to."""

    async def scenario() -> None:
        record = Record()
        says_when_asked = SLEEPER.replace("sys.exit(0)", "(os.write(1, b'asked\\n'), sys.exit(0))")
        supervised = Supervisor([program(name, says_when_asked) for name in ("head", "a", "b")], record)
        running = asyncio.create_task(supervised.run())
        await record.until(lambda: len(record.lines) == 3)
        supervised.stop()
        assert await running is None
        assert record.lines[3] == ("head", "asked")
        assert sorted(record.lines[4:]) == [("a", "asked"), ("b", "asked")]
        assert record.exits == []

    run(scenario())


def test_a_program_that_ends_is_started_again_after_a_growing_delay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_DELAY", 0.01)

    async def scenario() -> None:
        record = Record()
        crashing = program("a", "print('out of memory', flush=True); import os; os.kill(os.getpid(), 11)")
        supervised = Supervisor([program("head", SLEEPER), crashing], record)
        running = asyncio.create_task(supervised.run())
        await record.until(lambda: len(record.exits) == 3)
        supervised.stop()
        assert await running is None
        assert [delay for _, delay in record.exits] == [0.01, 0.02, 0.04]
        assert str(record.exits[0][0]) == "a was killed by SIGSEGV"
        assert record.exits[0][0].tail == ("out of memory",)
        assert sum(name == "head" for name, _ in record.pids) == 1

    run(scenario())


def test_without_restart_the_first_that_ends_ends_all() -> None:
    async def scenario() -> None:
        record = Record()
        failing = program("a", "print('bad manifest'); raise SystemExit(3)")
        failure = await Supervisor([program("head", SLEEPER), failing], record, restart=False).run()
        assert failure == Exit("a", 3, ("bad manifest",))
        assert str(failure) == "a ended with exit code 3"
        assert not any(alive(pid) for _, pid in record.pids)

    run(scenario())


def test_what_does_not_end_is_killed() -> None:
    async def scenario() -> None:
        record = Record()
        supervised = Supervisor([program("head", STUBBORN), program("a", STUBBORN)], record, grace=0.1)
        running = asyncio.create_task(supervised.run())
        await record.until(lambda: len(record.lines) == 2)
        supervised.stop()
        assert await running is None
        assert not any(alive(pid) for _, pid in record.pids)

    run(scenario())


def test_a_second_stop_does_not_wait() -> None:
    async def scenario() -> None:
        record = Record()
        supervised = Supervisor([program("head", STUBBORN)], record, grace=3600)
        running = asyncio.create_task(supervised.run())
        await record.until(lambda: len(record.lines) == 1)
        supervised.stop()
        supervised.stop()
        assert await running is None

    run(scenario())


def test_a_program_that_cannot_be_started_is_an_exit() -> None:
    async def scenario() -> None:
        missing = Program("head", ("/nonexistent/program",), {})
        failure = await Supervisor([missing], Record(), restart=False).run()
        assert failure is not None
        assert failure.code == 1
        assert "FileNotFoundError" in failure.tail[-1]

    run(scenario())


def test_any_output_is_taken() -> None:
    """Undecodable bytes, no line end, progress bars, and lines longer than memory should hold."""

    async def scenario() -> None:
        record = Record()
        code = r"import sys; sys.stdout.buffer.write(b'10%\r20%\r\n\xff\n' + b'x' * 200_000 + b'\nlast')"
        await Supervisor([program("head", code)], record, restart=False).run()
        texts = [text for _, text in record.lines]
        assert texts[:3] == ["10%", "20%", "\N{REPLACEMENT CHARACTER}"]
        assert "".join(texts[3:]) == "x" * 200_000 + "last"
        assert max(map(len, texts)) <= 2 << 16

    run(scenario())


ORPHAN_MAKER = """
import asyncio, os, sys
from pipedec.processes.launcher import Program
from pipedec.processes.supervisor import Observer, Supervisor
code = "import time; print('up', flush=True); time.sleep(60)"
head = Program("head", (sys.executable, "-I", "-S", "-c", code), dict(os.environ))
pids = []
observer = Observer(started=lambda name, pid: pids.append(pid), line=lambda name, text: print(pids[0], flush=True))
asyncio.run(Supervisor([head], observer).run())
"""


def test_no_orphan_survives_a_killed_supervisor() -> None:
    with subprocess.Popen([sys.executable, "-c", ORPHAN_MAKER], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    try:
        readable, _, _ = select.select([child], [], [], 30)  # a pidfd is readable once its process has ended
        assert readable
    finally:
        os.close(child)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
