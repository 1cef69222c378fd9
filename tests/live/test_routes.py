"""The page and its stream over HTTP: who may see what, and what a browser is allowed to do with it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client import CollectorRegistry

from draft_service.api import create_app
from draft_service.live.broadcast import Broadcast
from pipedec.metrics.requests import RequestMetrics
from tests.api.scripted import MODEL, ScriptedEngine, byte_tokenizer, served
from tests.live.test_broadcast import QuietHead, about


def client(live: Broadcast | None, keys: list[str] | None = None) -> Iterator[httpx.Client]:
    """Of an endpoint with the last of these keys."""
    tokenizer = byte_tokenizer()
    metrics = RequestMetrics(CollectorRegistry(), MODEL)
    app = create_app(
        ScriptedEngine(tokenizer), tokenizer, metrics, api_key=None if keys is None else lambda: keys[-1], live=live
    )
    with served(app) as server, httpx.Client(base_url=f"http://127.0.0.1:{server.port}", timeout=30) as http:
        yield http


@pytest.fixture(scope="module")
def http() -> Iterator[httpx.Client]:
    yield from client(Broadcast(QuietHead(), about()))


@pytest.fixture(scope="module")
def locked() -> Iterator[httpx.Client]:
    yield from client(Broadcast(QuietHead(), about()), keys=["key"])


@pytest.fixture(scope="module")
def without() -> Iterator[httpx.Client]:
    yield from client(None)


def files(http: httpx.Client) -> set[str]:
    """Every file that the page names, and that those name."""
    page = http.get("/").text
    found = set(re.findall(r'(?:src|href)="([^"]+)"', page))
    scripts = {path for path in found if path.endswith(".js")}
    while scripts:
        names = re.findall(r'from "\./([^"]+)"', http.get(scripts.pop()).text)
        fresh = {f"/live/{name}" for name in names} - found
        found |= fresh
        scripts |= fresh
    return found


def test_everything_the_page_names_is_there_and_nothing_is_elsewhere(http: httpx.Client) -> None:
    named = files(http)
    assert len(named) > 8
    for path in {"/", *named}:
        answer = http.get(path)
        assert answer.status_code == 200, path
        assert answer.headers["content-security-policy"].startswith("default-src 'none'")
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", answer.text), path
        assert http.get(path, headers={"if-none-match": answer.headers["etag"]}).status_code == 304
        assert http.head(path).headers["content-type"] == answer.headers["content-type"]


def test_the_page_has_no_inline_code(http: httpx.Client) -> None:
    page = http.get("/").text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)


def test_the_stream(http: httpx.Client) -> None:
    with http.stream("GET", "/live/events") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["cache-control"] == "no-store"
        lines = answer.iter_lines()
        assert next(lines).startswith('data: {"about":')
        assert next(lines) == ""
        assert next(lines).startswith('data: {"now":')


def test_the_stream_wants_the_key_and_the_page_can_ask_for_it(locked: httpx.Client) -> None:
    for path in ("/live/events", "/live/events/"):
        assert locked.get(path).status_code == 401
    assert {locked.get(path).status_code for path in {"/", *files(locked)}} == {200}
    with locked.stream("GET", "/live/events", headers={"authorization": "Bearer key"}) as answer:
        assert answer.status_code == 200


def test_who_watches_when_the_key_changes_watches_no_longer() -> None:
    keys = ["old"]
    for http in client(Broadcast(QuietHead(), about()), keys):
        with http.stream("GET", "/live/events", headers={"authorization": "Bearer old"}) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith('data: {"about":')
            keys.append("new")
            assert sum(line.startswith("data:") for line in lines) <= 1


def test_it_can_be_switched_off(without: httpx.Client) -> None:
    for path in ("/", "/live/events", "/live/main.js"):
        assert without.get(path).status_code == 404
