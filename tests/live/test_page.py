"""The live page in a real Chromium, before a real pipeline: asked for a key, idle, answering, a stage lost, back again.

Pictures of each state are written to `$PIPEDEC_PICTURES`, or else thrown away with the other files of the test.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.up import Up, running
from tests.browser import Page, browser, needs_chromium
from tests.tiny import tiny_model

pytestmark = needs_chromium

KEY = "a key of letters"
STAGES = 2
LOST = STAGES - 1
STATUS = "document.getElementById('status').dataset.state"
SHOWN = "document.getElementById('{}').checkVisibility()"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("key") / "key"
    file.write_text(KEY)
    return file


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, key_file: Path) -> Iterator[Up]:
    model = tiny_model(tmp_path_factory.mktemp("model"), layers=8, context=4096)
    resource = {
        "apiVersion": "pipedec.dev/v1alpha1",
        "kind": "PipeDecDeployment",
        "metadata": {"name": "tiny"},
        "spec": {
            "model": {"uri": f"file://{model}", "dtype": "float32"},
            "draft": {"targetLayers": 7},
            "pipeline": {"stages": STAGES},
            "serving": {"maxSequences": 2, "maxContext": 4000, "threads": 1, "drainSeconds": 1},
        },
    }
    with running(resource, "--api-key-file", str(key_file)) as up:
        yield up


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(os.environ.get("PIPEDEC_PICTURES") or tmp_path_factory.mktemp("pictures"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def page(up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """The page, with the key given to it by the keyboard alone."""
    with browser(tmp_path_factory.mktemp("profile")) as page:
        page.look(1280, 900)
        page.open(up.url)
        page.until(SHOWN.format("key"))
        page.problems.clear()  # Chromium itself reports the 401
        page.evaluate("document.getElementById('key').focus()")
        page.type(KEY)
        page.press("Enter", 13)
        page.until(f"{STATUS} === 'idle'")
        yield page


@pytest.fixture
def answering(page: Page) -> Iterator[Page]:
    """The page while a long answer comes; it is ended afterwards."""
    page.until(f"{STATUS} === 'idle' && document.getElementById('ask').textContent === 'Ask'")
    page.evaluate("document.getElementById('prompt').select()")
    page.type("Tell me more")
    page.press("Enter", 13)
    page.until(f"{STATUS} === 'working' && document.getElementById('answer').textContent.length > 20")
    yield page
    if page.evaluate("document.getElementById('ask').textContent") == "Stop":
        page.evaluate("document.getElementById('ask').click()")


def text(page: Page, id: str) -> str:
    return str(page.evaluate(f"document.getElementById('{id}').textContent"))


def overflow(page: Page) -> int:
    """Pixels that the page is wider than its window."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def test_idle(page: Page, pictures: Path) -> None:
    page.until(SHOWN.format("idle"))
    assert text(page, "headline") == f"One answer, {STAGES} stages at once"
    assert text(page, "model") == f"tiny in {STAGES} stages"
    assert not page.evaluate(SHOWN.format("alert"))
    page.picture(pictures / "live-idle.png")


def test_answering(answering: Page, pictures: Path) -> None:
    page = answering
    page.until("document.querySelectorAll('#tree g.decided').length > 2")
    page.until("/tokens\\/s/.test(document.getElementById('ours').textContent)")
    page.until("document.getElementById('hit-rate').textContent.endsWith('%')")
    assert text(page, "running") == "1"
    assert f"stage {STAGES - 1}" in page.evaluate("document.getElementById('lanes').getAttribute('aria-label')")
    page.until("document.getElementById('tree').textContent.length > 20")  # texts: it is this machine's own page
    page.picture(pictures / "live-running.png")
    page.look(1280, 900, dark=True)
    page.until("getComputedStyle(document.body).backgroundColor === 'rgb(16, 20, 19)'")
    page.picture(pictures / "live-dark.png")
    page.look(390, 844, dark=False, scale=2)
    page.until("document.getElementById('lanes').clientWidth < 390")
    assert overflow(page) == 0
    page.picture(pictures / "live-narrow.png")
    page.look(1280, 900)
    page.until("document.getElementById('lanes').clientWidth > 390")
    assert overflow(page) == 0


@pytest.mark.parametrize("word", ["9", "W", "W 9 "])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_text_makes_the_page_wider_than_its_window(page: Page, width: int, word: str) -> None:
    fields = (
        *("model", "status", "stages", "ours", "plain", "hit-rate", "busy", "plain-busy", "rows", "useful", "running"),
        *("waiting", "answer", "answer-note", "alert", "idle", "no-tree", "tree-note"),
    )
    page.look(width, 844, scale=2)
    page.until(f"document.documentElement.clientWidth === {width}")
    wide = page.evaluate(
        "(() => {"  # at once: the next frame writes its own texts
        "const by = (id) => document.getElementById(id);"
        f"const text = {word!r}.repeat(400);"
        f"const fields = {[*fields]}.map(by);"
        "const [before, hidden] = [fields.map((each) => each.innerHTML), [...document.querySelectorAll('[hidden]')]];"
        "hidden.forEach((each) => (each.hidden = false));"
        "fields.forEach((each) => (each.textContent = text));"
        "by('faults').innerHTML = `<li><time>${text}</time>${text}: <b>${text}</b></li>`;"
        "const label = by('tree').appendChild(document.createElementNS('http://www.w3.org/2000/svg', 'text'));"
        "label.textContent = text;"
        "const { scrollWidth, clientWidth } = document.documentElement;"
        "fields.forEach((each, index) => (each.innerHTML = before[index]));"
        "hidden.forEach((each) => (each.hidden = true));"
        "by('faults').replaceChildren(); label.remove();"
        "return scrollWidth - clientWidth; })()"
    )
    page.look(1280, 900)
    assert wide == 0


def test_pause_and_slow_motion_by_keyboard(answering: Page) -> None:
    page = answering
    page.evaluate("document.querySelector('input[name=pace]:checked').focus()")
    page.press("ArrowRight", 39)
    page.press("ArrowRight", 39)
    assert page.evaluate("document.querySelector('input[name=pace]:checked').value") == "0"
    still = "document.getElementById('lanes').toDataURL()"
    page.evaluate("new Promise(requestAnimationFrame)")
    before = page.evaluate(still)
    page.evaluate("new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)))")
    assert page.evaluate(still) == before
    page.press("ArrowRight", 39)  # round to live
    page.until(f"{still} !== {before!r}")


def test_a_lost_stage_is_plain_to_see_and_so_is_its_return(answering: Page, up: Up, pictures: Path) -> None:
    page = answering
    up.processes()[f"stage {LOST}"].send_signal(signal.SIGKILL)
    page.until(f"{STATUS} === 'lost' && /{LOST}/.test(document.getElementById('status').textContent)")
    page.until(SHOWN.format("alert"))
    assert text(page, "alert").startswith(f"Stage {LOST} of {STAGES} is lost.")
    assert page.evaluate(SHOWN.format("faults-panel"))
    page.picture(pictures / "live-lost.png")
    page.until(f"{STATUS} === 'working' && /^Whole again after/.test(document.getElementById('alert').textContent)")
    assert "over after" in text(page, "faults")
    length = len(text(page, "answer"))
    page.until(f"document.getElementById('answer').textContent.length > {length}")  # the same answer goes on
    page.picture(pictures / "live-recovered.png")
    assert text(page, "ask") == "Stop"


def test_top_sees_the_same(answering: Page, up: Up, key_file: Path) -> None:
    command = (sys.executable, "-m", "pipedec.cli", "top", up.url, "--api-key-file", str(key_file))
    told = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr) == (0, "")
    assert told.stdout.startswith(f"tiny in {STAGES} stages, policy adaptive   answering 1")
    assert "tokens/s" in told.stdout
    assert "█" in told.stdout
    assert "over after" in told.stdout


def test_nothing_went_wrong_and_nobody_else_was_asked(page: Page, up: Up) -> None:
    assert page.problems == []
    assert {url for url in page.requests if not url.startswith((f"{up.url}/", "data:"))} == set()
