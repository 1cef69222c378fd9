"""What draft pods say, asked of real HTTP servers, and what becomes of it in the status."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pipedec.spec.report import PipelineReport
from pipedec_operator import names
from pipedec_operator.names import Object
from pipedec_operator.reports import PATIENCE, Reports, address
from tests.control_plane.samples import pod_of, workloads

REPORT = {"layers": ["0-5", "6-11"], "reason": "", "degraded": ""}
KEY = ("lab", "lion")


class DraftPod:
    """A server that says what a test wants, and the pod that it is said to run in."""

    def __init__(self) -> None:
        self.status, self.headers, self.body = 200, dict[str, str](), json.dumps(REPORT).encode()
        pod = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                assert self.path == "/pipeline"
                self.send_response(pod.status)
                for name, value in {"Content-Length": str(len(pod.body)), **pod.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(pod.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def says(self, **report: Any) -> None:
        self.body = json.dumps(REPORT | report).encode()

    @property
    def pod(self) -> Object:
        found = pod_of(workloads()["Deployment/lion-0-draft"], podIP="127.0.0.1")
        found["metadata"]["uid"] = "uid-1"
        port = {"name": "http", "containerPort": self.server.server_port}
        found["spec"]["containers"] = [{"ports": [{"name": "control", "containerPort": 1}, port]}]
        return found


@pytest.fixture
def draft() -> Iterator[DraftPod]:
    found = DraftPod()
    yield found
    found.server.shutdown()
    found.server.server_close()


async def news(reports: Reports[tuple[str, str]], rounds: int = 1) -> list[PipelineReport | None]:
    """What is known after each time that the keeper is told of news."""
    found: list[PipelineReport | None] = []
    enough = asyncio.Event()

    def changed(key: tuple[str, str]) -> None:
        assert key == KEY
        found.append(reports.answers.get("uid-1"))
        if len(found) == rounds:
            enough.set()

    asking = asyncio.create_task(reports.run(changed, tick_seconds=0.01))
    async with asyncio.timeout(20):
        await enough.wait()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    return found


def test_an_answer_is_known_and_news_are_told(draft: DraftPod) -> None:
    reports: Reports[tuple[str, str]] = Reports(seconds_between=0)
    reports.keep(KEY, [draft.pod])
    assert asyncio.run(news(reports)) == [PipelineReport(layers=("0-5", "6-11"))]
    draft.says(degraded="no memory", added="by a later version")
    (second,) = asyncio.run(news(reports))
    assert second is not None
    assert second.degraded == "no memory"


def _gone(draft: DraftPod) -> None:
    draft.status = 404


def _elsewhere(draft: DraftPod) -> None:
    draft.status, draft.headers = 302, {"Location": "http://127.0.0.1:1/"}


def _nonsense(draft: DraftPod) -> None:
    draft.body = b"<html>"


def _unlike(draft: DraftPod) -> None:
    draft.says(layers=["all"])


def _too_long(draft: DraftPod) -> None:
    draft.says(padding="x" * 70_000)


def _endless(draft: DraftPod) -> None:
    draft.headers = {"Content-Length": "", "Connection": "close"}


@pytest.mark.parametrize("spoil", [_gone, _elsewhere, _nonsense, _unlike, _too_long, _endless])
def test_an_answer_that_stays_away_is_forgotten(draft: DraftPod, spoil: Any) -> None:
    reports: Reports[tuple[str, str]] = Reports(seconds_between=0)
    reports.keep(KEY, [draft.pod])
    asyncio.run(news(reports))
    spoil(draft)
    assert asyncio.run(news(reports)) == [None]
    assert reports._missed["uid-1"] >= PATIENCE


def test_a_pod_that_is_gone_is_forgotten(draft: DraftPod) -> None:
    reports: Reports[tuple[str, str]] = Reports(seconds_between=0)
    reports.keep(KEY, [draft.pod])
    asyncio.run(news(reports))
    reports.keep(KEY, [])
    assert reports.answers == {}


def test_only_running_draft_pods_have_an_address(draft: DraftPod) -> None:
    pod = draft.pod
    assert address(pod) == f"http://127.0.0.1:{draft.server.server_port}/pipeline"
    six = {**pod, "status": {**pod["status"], "podIP": "fd00::1"}}
    assert address(six) == f"http://[fd00::1]:{draft.server.server_port}/pipeline"
    for spoilt in (
        {"status": {**pod["status"], "phase": "Pending"}},
        {"status": {"phase": "Running"}},
        {"spec": {"containers": []}},
        {"metadata": {"labels": {names.ROLE: names.STAGE}}},
    ):
        assert address({**pod, **spoilt}) is None
