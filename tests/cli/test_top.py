"""`pipedec top`: in a terminal until Ctrl-C, and what it says where there is nothing to see."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from draft_service.api import create_app
from draft_service.live.broadcast import Broadcast
from pipedec.cli.view import View
from pipedec.metrics.requests import RequestMetrics
from tests.api.scripted import MODEL, ScriptedEngine, byte_tokenizer, served
from tests.live.test_broadcast import QuietHead, about

TOP = (sys.executable, "-m", "pipedec.cli", "top")


@pytest.fixture(scope="module")
def head() -> QuietHead:
    return QuietHead()


@pytest.fixture(scope="module")
def url(head: QuietHead) -> Iterator[str]:
    tokenizer = byte_tokenizer()
    metrics = RequestMetrics(CollectorRegistry(), MODEL)
    app = create_app(ScriptedEngine(tokenizer), tokenizer, metrics, live=Broadcast(head, about()))
    with served(app) as server:
        yield f"http://127.0.0.1:{server.port}"


def test_a_terminal_is_kept_up_to_date_until_ctrl_c(url: str) -> None:
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}
    with subprocess.Popen(
        (*TOP, url),
        stdin=theirs,
        stdout=theirs,
        stderr=subprocess.PIPE,
        env=environment,
        text=True,
        preexec_fn=heeds_interrupts,
    ) as top:
        os.close(theirs)
        told = b""
        while b"ready, idle" not in told:
            told += os.read(ours, 4096)
        rest = threading.Thread(target=_drain, args=(ours,))
        rest.start()
        top.send_signal(signal.SIGINT)
        _, errors = top.communicate(timeout=60)
        rest.join()
    os.close(ours)
    assert (top.returncode, errors) == (0, "no longer watching; the pipeline goes on\n")
    assert b"\x1b[?1049h" in told  # a screen of its own, and the old one is back


def heeds_interrupts() -> None:
    """A shell's background jobs, the tests perhaps among them, ignore them, and so would their children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def _drain(descriptor: int) -> None:
    try:
        while os.read(descriptor, 4096):
            pass
    except OSError:  # the other side has closed it
        return


def test_without_a_terminal_it_looks_once(url: str) -> None:
    told = subprocess.run((*TOP, f"{url}/v1"), capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith("m in 2 stages, policy adaptive   ready, idle\n")
    assert "\x1b" not in told.stdout


def test_where_nothing_answers_it_says_so() -> None:
    told = subprocess.run((*TOP, "http://127.0.0.1:9", "--once"), capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout) == (1, "")
    assert re.match(r"error: nothing answers at http://127\.0\.0\.1:9/live/events", told.stderr)


def test_where_the_live_page_is_off_it_says_what_switches_it_on() -> None:
    tokenizer = byte_tokenizer()
    app = create_app(ScriptedEngine(tokenizer), tokenizer, RequestMetrics(CollectorRegistry(), MODEL))
    with served(app) as server:
        told = subprocess.run((*TOP, f"http://127.0.0.1:{server.port}"), capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stdout) == (1, "")
    assert "has no live page; the manifest's serving.livePage switches it on" in told.stderr


FRAME = {
    "now": 10_000,
    **{"ready": True, "epoch": 1, "reason": "", "degraded": "", "missing": [], "running": 1, "waiting": 0},
    **{"tokensPerSecond": 30.0, "plainTokensPerSecond": 10.0, "hitRate": 0.8, "busy": [1.0, 0.5], "stepMs": [20, 20]},
    "batches": [
        {
            **{"step": 1, "prompt": 0, "useful": 2, "wasted": 6, "open": 0, "decided": 2, "over": True, "lost": False},
            "spans": [9000, 9400, 9400, 9800],
        },
        {
            **{"step": 2, "prompt": 0, "useful": 0, "wasted": 0, "open": 4, "decided": 0, "over": False, "lost": False},
            "spans": [9500, 10000],
        },
    ],
    "tree": {
        **{"request": 1, "prompt": 3, "output": 2, "cursor": 7, "position": 4, "step": 1, "hidden": 3},
        "path": [[3, 5, False, "Once"], [4, 7, True, " upon"]],
        "nodes": [[8, 7, 5, 2, " a"], [9, 7, 5, 2, "\x1b[31m"], [10, 8, 6, 2, " time"]],
    },
    "faults": [{"epoch": 1, "reason": "stage 1 cannot be reached", "lost": 1000, "live": 3500}],
}


def drawn(frame: object, width: int = 100) -> str:
    view = View({"model": "m", "layers": [[0, 2], [2, 3]], "policy": "adaptive", "showsText": True})
    view.show(frame)  # type: ignore[arg-type]
    console = Console(width=width, color_system=None)
    with console.capture() as captured:
        console.print(view)
    return captured.get()


def test_what_it_draws() -> None:
    picture = drawn(FRAME)
    assert "30.0 tokens/s" in picture
    assert "3.0 times" in picture
    assert "80% of words" in picture
    assert "8.0 rows a step, 2.0 became text" in picture
    lanes = re.findall(r"^ *\d layers? [\d-]+ +(\S+)", picture, re.MULTILINE)
    assert [set(lane) for lane in lanes] == [{"·", "█", "▒"}, {"·", "█"}]
    assert re.search(r"^Once +upon +a +time", picture, re.MULTILINE)
    assert "over after 2.5 s, no token was lost" in picture
    assert "\x1b" not in picture  # a token cannot speak to the terminal
    assert max(map(len, drawn(FRAME, 60).splitlines())) <= 60


def test_a_lost_stage() -> None:
    lost = {**FRAME, "ready": False, "missing": [1], "reason": "waiting for stage 1 to register"}
    picture = drawn(lost)
    assert "stage 1 is lost: waiting for stage 1 to register" in picture
    assert "lost; it is started again" in picture
