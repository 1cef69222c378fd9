"""The client, against a real server that behaves well and badly."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import pytest

from pipedec.cli.client import served_model, stream
from pipedec.errors import PipeDecError, UnavailableError


@contextmanager
def endpoint(body: bytes, status: int = 200) -> Iterator[tuple[str, list[tuple[str, str | None, bytes]]]]:
    """Address of a server that answers everything with `body`; what it was asked: path, authorization, body."""
    asked: list[tuple[str, str | None, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            asked.append((self.path, self.headers["Authorization"], sent))
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()
            thread.join()


def events(*chunks: object) -> bytes:
    return b"".join(b"data: " + (c if isinstance(c, bytes) else json.dumps(c).encode()) + b"\n\n" for c in chunks)


def test_chunks_come_in_order() -> None:
    with endpoint(b": a comment\n\n" + events({"a": 1}, {"a": 2}, b"[DONE]")) as (base, asked):
        assert list(stream(base, "/v1/completions", {"prompt": "x"}, "key")) == [{"a": 1}, {"a": 2}]
    ((path, authorization, body),) = asked
    assert (path, authorization) == ("/v1/completions", "Bearer key")
    assert json.loads(body) == {"prompt": "x", "stream": True}


def test_the_served_model_is_asked_for() -> None:
    with endpoint(b'{"data": [{"id": "large"}]}') as (base, asked):
        assert served_model(base, None) == "large"
    assert asked == [("/v1/models", None, b"")]


def test_an_answer_that_breaks_off_is_an_error() -> None:
    with endpoint(events({"a": 1})) as (base, _):
        chunks = stream(base, "/v1/completions", {}, None)
        assert next(chunks) == {"a": 1}
        with pytest.raises(PipeDecError, match="closed the connection in the middle of its answer"):
            next(chunks)


def test_an_error_in_the_stream_is_told_in_its_own_words() -> None:
    with endpoint(events({"a": 1}, {"error": {"message": "stage 2 is gone"}})) as (base, _):
        chunks = stream(base, "/v1/completions", {}, None)
        next(chunks)
        with pytest.raises(PipeDecError, match="stage 2 is gone"):
            next(chunks)


@pytest.mark.parametrize(
    ("body", "words"), [(b'{"error": {"message": "bad key"}}', "401: bad key"), (b"<html>", "401: <html>")]
)
def test_a_refusal_is_told_in_its_own_words(body: bytes, words: str) -> None:
    with endpoint(body, 401) as (base, _), pytest.raises(PipeDecError, match=words):
        served_model(base, None)


def test_nobody_there_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(UnavailableError, match=f"nothing answers at http://127.0.0.1:{port}/v1/models"):
        served_model(f"http://127.0.0.1:{port}", None)


@pytest.mark.parametrize("body", [b"<html>", b"", b"5", b"{}", b'{"data": []}', b'{"data": [{}]}', b"\xff"])
def test_another_service_is_no_endpoint(body: bytes) -> None:
    with endpoint(body) as (base, _), pytest.raises(PipeDecError, match="v1/models names no model; is it another"):
        served_model(base, None)


@pytest.mark.parametrize("said", [b"<html>", b"5"])
def test_a_stream_of_something_else_is_said_to_be_one(said: bytes) -> None:
    with endpoint(events(said)) as (base, _), pytest.raises(PipeDecError, match="does not speak as PipeDec does"):
        next(stream(base, "/v1/completions", {}, None))


@contextmanager
def speaker(said: bytes) -> Iterator[tuple[str, Event]]:
    """Address of one who says this to the first who asks, and resets the connection when the event is set."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def speak() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1 << 16)
                connection.sendall(said)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                reset.wait(30)

        reset = Event()
        thread = Thread(target=speak)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", reset
        finally:
            reset.set()
            thread.join()


def test_what_speaks_no_http_is_said_to_be_another_port() -> None:
    with speaker(b"SSH-2.0-OpenSSH\r\n") as (base, _), pytest.raises(PipeDecError, match="does not speak HTTP"):
        served_model(base, None)


@pytest.mark.parametrize("head", [b"", b"transfer-encoding: chunked\r\n"])
def test_a_connection_that_is_reset_in_an_answer_is_an_error(head: bytes) -> None:
    event = events({"a": 1})
    said = b"%x\r\n%s\r\n" % (len(event), event) if head else event
    with speaker(b"HTTP/1.1 200 OK\r\n" + head + b"\r\n" + said) as (base, reset):
        chunks = stream(base, "/v1/completions", {}, None)
        assert next(chunks) == {"a": 1}
        reset.set()
        with pytest.raises(PipeDecError, match=r"in the middle of its answer \("):
            next(chunks)


@pytest.mark.parametrize(
    "url", ["127.0.0.1:8000", "http://[", "localhost:8000", "http://127.0.0.1:80a", "http://a b", "http://a/\u00fc"]
)
def test_what_is_no_url_says_so(url: str) -> None:
    with pytest.raises(PipeDecError, match=r"is not a URL: "):
        served_model(url, None)
