"""The API seam over real HTTP, against a server that says what a test wants it to say."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration

from pipedec_operator import names
from pipedec_operator.cluster import ApiServer, ClusterError

CHILD = {"metadata": {"namespace": "lab", "name": "lion", "uid": "u-1"}, "spec": {}}


class Scripted(HTTPServer):
    """Answers every request with `answer`, and remembers it."""

    def __init__(self) -> None:
        self.answer: tuple[int, dict[str, str], bytes] = (200, {}, b"{}")
        self.seen: list[tuple[str, str, Any, str]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    def says(self, code: int, body: object, **headers: str) -> None:
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.answer = (code, {name.replace("_", "-"): value for name, value in headers.items()}, text)


class _Handler(BaseHTTPRequestHandler):
    server: Scripted

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        sent = json.loads(body) if body else None
        self.server.seen.append((self.command, self.path, sent, self.headers.get("Content-Type", "")))
        code, headers, text = self.server.answer
        self.send_response(code)
        for name, value in {"Content-Length": str(len(text)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _answer

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Scripted]:
    scripted = Scripted()
    thread = threading.Thread(target=scripted.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield scripted
    scripted.shutdown()
    thread.join()
    scripted.server_close()


@pytest.fixture
def counted() -> list[tuple[str, int]]:
    return []


@pytest.fixture
def api(server: Scripted, counted: list[tuple[str, int]]) -> Iterator[ApiServer]:
    configuration = Configuration(host=f"http://127.0.0.1:{server.server_port}")
    configuration.retries = False
    client = ApiClient(configuration)
    yield ApiServer(client, lambda verb, code: counted.append((verb, code)))
    client.rest_client.pool_manager.clear()


def test_apply_is_server_side_and_takes_fields_back(api: ApiServer, server: Scripted) -> None:
    api.apply(names.WORKLOAD, CHILD)
    path = "/apis/apps/v1/namespaces/lab/deployments/lion?fieldManager=pipedec-operator&force=true"
    assert server.seen == [("PATCH", path, CHILD, "application/apply-patch+yaml")]


def test_a_patch_is_merged(api: ApiServer, server: Scripted) -> None:
    api.patch(names.SERVICE, CHILD, {"spec": {"a": None}})
    path = "/api/v1/namespaces/lab/services/lion?fieldManager=pipedec-operator"
    assert server.seen == [("PATCH", path, {"spec": {"a": None}}, "application/merge-patch+json")]


def test_delete_names_the_very_object(api: ApiServer, server: Scripted) -> None:
    api.delete(names.SERVICE, CHILD)
    ((verb, path, body, _),) = server.seen
    assert (verb, path) == ("DELETE", "/api/v1/namespaces/lab/services/lion")
    assert body["preconditions"] == {"uid": "u-1"}


@pytest.mark.parametrize("code", [404, 409])
def test_what_is_gone_need_not_be_deleted(api: ApiServer, server: Scripted, code: int) -> None:
    server.says(code, {"reason": "NotFound"})
    api.delete(names.SERVICE, CHILD)


def test_a_list_selects_and_names_the_kind_of_its_items(api: ApiServer, server: Scripted) -> None:
    server.says(200, {"items": [{"metadata": {"name": "a"}}]})
    assert api.list(names.POD, "lab", {"a/b": "c"}) == [
        {"metadata": {"name": "a"}, "apiVersion": "v1", "kind": "Pod"},
    ]
    assert server.seen[0][1] == "/api/v1/namespaces/lab/pods?labelSelector=a/b%3Dc"


def test_nothing_there_is_no_error(api: ApiServer, server: Scripted) -> None:
    server.says(404, {"reason": "NotFound"})
    assert api.get(names.SECRET, "lab", "lion") is None


@pytest.mark.parametrize(
    ("code", "passing"), [(400, False), (403, False), (409, True), (410, True), (422, False), (429, True), (500, True)]
)
def test_errors_are_told_apart(
    api: ApiServer, server: Scripted, counted: list[tuple[str, int]], code: int, passing: bool
) -> None:
    server.says(code, {"reason": "Because", "message": "of this"}, Retry_After="3")
    with pytest.raises(ClusterError, match="Because: of this") as caught:
        api.apply(names.WORKLOAD, CHILD)
    assert (caught.value.code, caught.value.passing, caught.value.retry_after) == (code, passing, 3)
    assert counted == [("PATCH", code)]
    assert len(server.seen) == 1  # not repeated behind our back


def test_a_malformed_apply_is_the_specs_fault(api: ApiServer, server: Scripted) -> None:
    server.says(500, {"message": "failed to create typed patch object: .spec.x: expected map"})
    with pytest.raises(ClusterError) as caught:
        api.apply(names.WORKLOAD, CHILD)
    assert not caught.value.passing


@pytest.mark.parametrize("body", [b"<html>", b"[]", b""])
def test_a_gateways_error_page_is_an_error_too(api: ApiServer, server: Scripted, body: bytes) -> None:
    server.says(502, body)
    with pytest.raises(ClusterError) as caught:
        api.get(names.SECRET, "lab", "lion")
    assert caught.value.passing


def test_a_success_that_is_no_json_is_an_error(api: ApiServer, server: Scripted) -> None:
    server.says(200, b"<html>")
    with pytest.raises(ClusterError, match="Unreachable"):
        api.get(names.SECRET, "lab", "lion")


def test_no_answer_is_an_error(api: ApiServer, server: Scripted, counted: list[tuple[str, int]]) -> None:
    server.server_close()
    with pytest.raises(ClusterError) as caught:
        api.list(names.POD, "lab", {})
    assert (caught.value.code, caught.value.passing) == (0, True)
    assert counted == [("GET", 0)]


def test_the_first_kind_that_is_served_is_used(api: ApiServer, server: Scripted) -> None:
    server.says(200, {"resources": [{"name": "poddisruptionbudgets"}]})
    assert api.first_known(names.DISRUPTION_BUDGETS) == names.DISRUPTION_BUDGETS[0]
    assert api.first_known(names.POD_MONITORS) is None
    server.says(404, {})
    assert api.first_known(names.DISRUPTION_BUDGETS) is None
