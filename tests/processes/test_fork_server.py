"""Programs as forks of a process that has imported what they need: they are what they would be by themselves."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import select
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from pipedec.cli.local import Local, plan_processes
from pipedec.config import child_environment
from pipedec.processes.launcher import HEAVY_MODULES, Child, Launcher, Program
from pipedec.processes.supervisor import Exit, Observer, Supervisor
from pipedec.spec import parse_manifest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every program is started from its file")

BASE = child_environment({"PYTHONPATH": os.getcwd(), "COLOUR": "red", "SHAPE": "round"})


def talker(name: str, what: str = "", **changes: str) -> Program:
    return Program(name, (sys.executable, "-m", "tests.processes.talker", what), {**BASE, **changes}, may_fork=True)


def launcher() -> Launcher:
    return Launcher(["tests.processes.heavy"], fork=True)


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


async def told(child: Child) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await child.output.readline())
    assert await child.output.readline() == b"and on stderr\n"
    return found


async def all_told(child: Child) -> dict[str, Any]:
    """Of one that then ends."""
    found = await told(child)
    assert (await child.output.read(), await child.ended) == (b"", 0)
    return found


def test_forks_have_at_once_what_one_process_imported() -> None:
    async def scenario() -> None:
        starts = launcher()
        children = await asyncio.gather(*(starts.start(talker(name, name)) for name in ("a", "b", "c")))
        found = [await all_told(child) for child in children]
        assert [each["argv"] for each in found] == [["a"], ["b"], ["c"]]
        assert [each["pid"] for each in found] == [child.pid for child in children]
        (importer,) = {each["imported by"] for each in found}
        assert importer not in {child.pid for child in children}
        await starts.close()

    run(scenario)


def test_a_fork_is_what_a_program_of_its_own_is() -> None:
    async def scenario() -> None:
        forks, executes = launcher(), Launcher(fork=False)
        await all_told(await forks.start(talker("first")))
        wanted = talker("a", "x", COLOUR="blue", SIZE="large")
        environment = {name: value for name, value in wanted.environment.items() if name != "SHAPE"}
        wanted = Program("a", wanted.command, environment, may_fork=True)
        one, other = [await all_told(await starts.start(wanted)) for starts in (forks, executes)]
        assert one["imported by"] != one["pid"]
        assert other["imported by"] == other["pid"]
        assert one["session"] == one["pid"]
        assert (one["environment"]["COLOUR"], one["environment"]["SIZE"]) == ("blue", "large")
        for each in (one, other):
            for of_its_own in ("imported by", "pid", "session"):
                del each[of_its_own]
        one["environment"].pop("OPENBLAS_NUM_THREADS")
        assert one == other
        assert all(one["default signals"])
        await forks.close()

    run(scenario)


@pytest.mark.parametrize(
    ("what", "code", "last"), [("fail", 1, "it failed"), ("crash", -signal.SIGSEGV, "and on stderr")]
)
def test_how_a_fork_ended_is_known(what: str, code: int, last: str) -> None:
    async def scenario() -> None:
        failure = await Supervisor([talker("a", what)], Observer(), restart=False, launcher=launcher()).run()
        assert failure is not None
        assert (failure.code, failure.tail[-1]) == (code, last)

    run(scenario)


def test_a_module_that_cannot_be_imported_fails_where_it_is_used() -> None:
    async def scenario() -> None:
        missing = Program("a", (sys.executable, "-m", "tests.processes.missing"), BASE, may_fork=True)
        failure = await Supervisor([missing], Observer(), restart=False, launcher=launcher()).run()
        assert failure is not None
        assert failure.code == 1
        assert "No module named tests.processes.missing" in failure.tail[-1]

    run(scenario)


class Sleepers(Observer):
    """Of programs that sleep: their process numbers, once they do."""

    def __init__(self, count: int) -> None:
        super().__init__(line=self._line, exited=lambda exit, delay: self.exits.append(exit))
        self.pids: list[int] = []
        self.exits: list[Exit] = []
        self._count, self._news = count, asyncio.Event()

    def _line(self, name: str, text: str) -> None:
        if text.startswith("{"):
            self.pids.append(json.loads(text)["pid"])
            self.importer = json.loads(text)["imported by"]
        self._news.set()

    async def sleep(self) -> None:
        while len(self.pids) < self._count:
            self._news.clear()
            await self._news.wait()


def test_a_fork_ends_when_it_is_asked_to() -> None:
    async def scenario() -> None:
        sleepers = Sleepers(2)
        supervisor = Supervisor([talker("a", "sleep"), talker("b", "sleep")], sleepers, launcher=launcher())
        running = asyncio.create_task(supervisor.run())
        await sleepers.sleep()
        supervisor.stop()
        assert await running is None
        assert sleepers.exits == []
        assert not any(Path(f"/proc/{pid}").exists() for pid in (*sleepers.pids, sleepers.importer))

    run(scenario)


def test_when_the_server_dies_all_start_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipedec.processes.supervisor.FIRST_DELAY", 0.01)

    async def scenario() -> None:
        sleepers = Sleepers(2)
        supervisor = Supervisor([talker("a", "sleep"), talker("b", "sleep")], sleepers, launcher=launcher())
        running = asyncio.create_task(supervisor.run())
        await sleepers.sleep()
        first, sleepers._count = sleepers.importer, 4
        os.kill(first, signal.SIGKILL)
        await sleepers.sleep()
        assert sleepers.importer != first
        assert {exit.code for exit in sleepers.exits} == {-signal.SIGKILL}
        supervisor.stop()
        assert await running is None

    run(scenario)


def test_no_fork_outlives_the_one_who_asked_for_it() -> None:
    async def scenario() -> None:
        starts = launcher()
        child = await starts.start(talker("a", "sleep"))
        importer = (await told(child))["imported by"]
        watched = os.pidfd_open(child.pid)
        os.kill(importer, signal.SIGKILL)
        readable, _, _ = await asyncio.to_thread(select.select, [watched], [], [], 30)
        assert readable
        os.close(watched)
        assert await child.ended == -signal.SIGKILL
        await starts.close()

    run(scenario)


def test_a_stop_while_modules_are_imported_does_not_wait_for_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are given a module that takes a minute, and whose import tells that it has begun."""
    begun = tmp_path / "begun"
    os.mkfifo(begun)
    (tmp_path / "slow.py").write_text(f"open({str(begun)!r}, 'w').close()\nimport time; time.sleep(60)")

    async def scenario() -> None:
        slow = Program("a", (sys.executable, "-m", "slow"), {**BASE, "PYTHONPATH": str(tmp_path)}, may_fork=True)
        supervisor = Supervisor([slow], Observer(), launcher=Launcher(["slow"], fork=True))
        running = asyncio.create_task(supervisor.run())
        await asyncio.to_thread(begun.read_text)
        supervisor.stop()
        assert await asyncio.wait_for(running, 30) is None

    run(scenario)
    assert not caplog.records


@pytest.mark.parametrize("fork", [False, True])
def test_what_no_process_can_be_made_for_is_an_exit(monkeypatch: pytest.MonkeyPatch, fork: bool) -> None:
    async def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    async def scenario() -> None:
        programs = [talker("a"), talker("b")]
        failure = await Supervisor(programs, Observer(), restart=False, launcher=Launcher([], fork=fork)).run()
        assert failure is not None
        assert failure.code == 1
        assert failure.tail == ("cannot be started: [Errno 11] Resource temporarily unavailable",)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", refuse)
    run(scenario)


def test_the_services_modules_start_no_thread(tmp_path: Path) -> None:
    """A fork would lack it; such programs are started anew, and nothing is gained."""
    manifest = {
        "apiVersion": "pipedec.dev/v1alpha1",
        "kind": "PipeDecDeployment",
        "metadata": {"name": "m"},
        "spec": {"model": {"uri": "hf://a/b"}, "pipeline": {"stages": 2}, "serving": {"threads": 4}},
    }
    _, stage, _ = plan_processes(parse_manifest(manifest), tmp_path, tmp_path, Local(port=0)).programs
    assert stage.may_fork

    async def scenario() -> None:
        starts = Launcher([*HEAVY_MODULES, "tests.processes.heavy"], fork=True)
        environment = {**stage.environment, "PYTHONPATH": os.getcwd()}
        child = await starts.start(Program("a", talker("a").command, environment, may_fork=True))
        found = await all_told(child)
        assert found["imported by"] != found["pid"]
        await starts.close()

    run(scenario)
