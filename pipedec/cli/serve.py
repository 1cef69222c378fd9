"""Running a local pipeline from the first process to the last, and telling what happens meanwhile."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import urllib.error
from collections.abc import Awaitable, Callable

from pipedec.cli.client import direct
from pipedec.cli.liveness import kill_stuck
from pipedec.cli.local import LocalPipeline
from pipedec.cli.terminal import Board, notes
from pipedec.errors import PipeDecError
from pipedec.processes.supervisor import Exit, Observer, Supervisor

LOADING_POLL, SERVING_POLL = 0.2, 1.0  # seconds between questions
GRACE_BEYOND_DRAIN = 10.0  # seconds for a process to end once no request runs
_TOLD = re.compile(r"[ \"](WARNING|ERROR|CRITICAL)[ \"]")  # lines of text, or of JSON
_TOLD_LINES = 12  # of a program that ended


async def serve(
    pipeline: LocalPipeline,
    when_ready: Callable[[], Awaitable[None]],
    *,
    restart: bool = True,
    verbose: bool = False,
) -> bool:
    """Start all processes, call `when_ready` once requests are answered, and end all when it returns.

    SIGINT and SIGTERM end the pipeline in good order, a second one at once. A process that ends before the first
    request could be answered ends the pipeline, for it would do so again; later ones are started anew if `restart`, and
    so are those that hang.
    Returns whether `when_ready` came to its end. Raises `PipeDecError` naming the process that ended the pipeline.
    """
    board = Board(list(pipeline.probes))

    def show(name: str, text: str) -> None:
        if verbose or (not supervisor.stopping and _TOLD.search(text)):
            notes.print(f"{name} | {text}", style="dim")

    def interrupt() -> None:
        if not supervisor.stopping:
            notes.print("ending after the requests that run; Ctrl-C again ends at once", style="dim")
        supervisor.stop()

    grace = pipeline.drain_seconds + GRACE_BEYOND_DRAIN
    supervisor = Supervisor(pipeline.programs, Observer(line=show, exited=_tell_exit), restart=False, grace=grace)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, interrupt)
    running = asyncio.create_task(supervisor.run())
    work = asyncio.create_task(_work(pipeline, board, supervisor, when_ready, restart))
    try:
        await asyncio.wait((running, work), return_when=asyncio.FIRST_COMPLETED)
    finally:
        board.close()
        work.cancel()
        if not running.done():
            supervisor.stop()
        failure = await running
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)
    if failure is not None:
        raise PipeDecError(f"{failure}, and the pipeline with it")
    if work.cancelled() or not work.done():
        return False
    work.result()
    return True


async def _work(
    pipeline: LocalPipeline,
    board: Board,
    supervisor: Supervisor,
    when_ready: Callable[[], Awaitable[None]],
    restart: bool,
) -> None:
    while await _look(pipeline, board):
        await asyncio.sleep(LOADING_POLL)
    board.close()
    supervisor.restart = restart
    watching = [asyncio.create_task(_watch(pipeline.probes["draft"], supervisor))]
    if restart:
        watching.append(asyncio.create_task(kill_stuck(pipeline.health, supervisor)))
    try:
        await when_ready()
    finally:
        for task in watching:
            task.cancel()


async def _look(pipeline: LocalPipeline, board: Board) -> bool:
    """Ask every process once; whether there is something to wait for still."""
    reasons = await asyncio.gather(*(asyncio.to_thread(not_ready, url) for url in pipeline.probes.values()))
    for name, reason in zip(pipeline.probes, reasons, strict=True):
        board.say(name, reason or "ready")
    return bool(reasons[0])


async def _watch(url: str, supervisor: Supervisor) -> None:
    """Tell when a pipeline that was ready is not, and when it is again."""
    told = ""
    while not supervisor.stopping:
        reason = await asyncio.to_thread(not_ready, url)
        if not supervisor.stopping and bool(reason) != bool(told):
            notes.print(f"not ready: {reason}" if reason else "ready again", style="yellow" if reason else "green")
            told = reason
        await asyncio.sleep(SERVING_POLL)


def not_ready(url: str) -> str:
    """Why the process at a readiness address is not ready, in its own words; empty when it is."""
    try:
        with direct.open(url, timeout=5):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            return _message(error.read().decode(errors="replace"))
    except OSError:
        return "starting"


def _message(body: str) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, TypeError, KeyError):
        return body.strip() or "not ready"


def _tell_exit(exit: Exit, delay: float | None) -> None:
    for text in exit.tail[-_TOLD_LINES:]:
        notes.print(f"{exit.name} | {text}", style="dim")
    if delay is not None:
        notes.print(f"{exit}; it is started again in {delay:.0f} s", style="yellow")
