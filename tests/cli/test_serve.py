"""A pipeline from its first process to its last, with small real programs in place of the services."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from pipedec.cli import liveness
from pipedec.cli.local import LocalPipeline
from pipedec.cli.ports import free_ports
from pipedec.cli.serve import not_ready, serve
from pipedec.errors import PipeDecError
from pipedec.processes import supervisor
from pipedec.processes.launcher import Program

READY_AFTER = """
import http.server, os, signal, sys
left = int(sys.argv[2])
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        global left
        if self.path == '/crash':
            os.kill(os.getpid(), signal.SIGALRM)
        if self.path == '/hang':
            os.kill(os.getpid(), signal.SIGSTOP)
        left -= 1
        self.send_response(200 if left < 0 else 503)
        self.end_headers()
        self.wfile.write(b'{"error": {"message": "warming up"}}')
    def log_message(self, *args): pass
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print('2025-01-01 INFO quiet', flush=True)
print('2025-01-01 WARNING loud', flush=True)
http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), Handler).serve_forever()
"""


def pipeline(head: str = READY_AFTER, stage: str = READY_AFTER) -> LocalPipeline:
    ports = free_ports(2)
    programs = tuple(
        Program(name, (sys.executable, "-I", "-S", "-c", code, str(port), "2"), dict(os.environ))
        for name, code, port in zip(("draft", "stage 0"), (head, stage), ports, strict=True)
    )
    probes = {program.name: f"http://127.0.0.1:{port}/" for program, port in zip(programs, ports, strict=True)}
    health = {name: f"{url}health" for name, url in probes.items()}
    return LocalPipeline(programs, probes, health, probes["draft"], "model", 1)


def test_work_is_done_once_all_is_ready(capfd: pytest.CaptureFixture[str]) -> None:
    wanted = pipeline()

    async def work() -> None:
        assert await asyncio.to_thread(not_ready, wanted.probes["draft"]) == ""

    assert asyncio.run(serve(wanted, work))
    assert not_ready(wanted.probes["draft"]) == "starting", "it has been ended"
    told = capfd.readouterr().err
    assert "draft: warming up\n" in told
    assert "draft: ready\n" in told
    assert "stage 0 | 2025-01-01 WARNING loud\n" in told
    assert "quiet" not in told


def test_a_failure_before_it_is_ready_ends_the_pipeline(capfd: pytest.CaptureFixture[str]) -> None:
    failing = pipeline(stage="print('spec.model.uri: is wrong'); raise SystemExit(1)")

    async def work() -> None:
        raise AssertionError("it never is ready")

    with pytest.raises(PipeDecError, match="stage 0 ended with exit code 1, and the pipeline with it"):
        asyncio.run(serve(failing, work))
    assert "stage 0 | spec.model.uri: is wrong" in capfd.readouterr().err


async def ends_at(url: str) -> None:
    assert await asyncio.to_thread(not_ready, url) == "starting", "the connection breaks"


async def crash(url: str) -> None:
    await ends_at(f"{url}crash")


def test_a_crash_later_on_is_survived(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.01)
    wanted = pipeline()

    async def work() -> None:
        await crash(wanted.probes["stage 0"])
        while await asyncio.to_thread(not_ready, wanted.probes["stage 0"]):
            await asyncio.sleep(0.02)

    assert asyncio.run(serve(wanted, work))
    assert "stage 0 was killed by SIGALRM; it is started again in 0 s" in capfd.readouterr().err


def test_what_hangs_is_killed_and_started_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(liveness, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(liveness, "TIMEOUT_SECONDS", 0.5)
    wanted = pipeline()

    async def work() -> None:
        await ends_at(f"{wanted.probes['stage 0']}hang")
        while await asyncio.to_thread(not_ready, wanted.probes["stage 0"]):
            await asyncio.sleep(0.02)

    assert asyncio.run(serve(wanted, work))
    told = capfd.readouterr().err
    assert "stage 0 hangs (no answer: " in told
    assert "stage 0 was killed by SIGKILL; it is started again in 0 s" in told


def test_without_restart_a_crash_ends_the_pipeline() -> None:
    wanted = pipeline()

    async def work() -> None:
        await crash(wanted.probes["stage 0"])
        await asyncio.Event().wait()

    with pytest.raises(PipeDecError, match="stage 0 was killed by SIGALRM, and the pipeline with it"):
        asyncio.run(serve(wanted, work, restart=False))


def test_a_signal_ends_it_in_good_order() -> None:
    async def work() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    assert not asyncio.run(serve(pipeline(), work))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_an_error_of_the_work_is_raised() -> None:
    async def work() -> None:
        raise PipeDecError("the client's own")

    with pytest.raises(PipeDecError, match="the client's own"):
        asyncio.run(serve(pipeline(), work))
