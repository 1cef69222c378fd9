"""A service's /healthz, /readyz and /metrics, for kubelets and Prometheus, in a thread of its own."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from prometheus_client import CollectorRegistry

from pipedec.errors import PipeDecError
from pipedec.listening import listen
from pipedec.metrics import expose

PATIENCE_SECONDS = 60.0  # the longest time between two layers, or two batches, that still counts as progress
CLIENT_SECONDS = 10.0  # a client that sends nothing for so long is cut off

_log = logging.getLogger(__name__)


class Health:
    """What a service says of itself: its own loop writes, HTTP threads read.

    Live: `beat` was called less than `patience` seconds ago, or never, since a service that still loads its model must
    not be killed for it. Ready: `reason` is empty.
    """

    def __init__(self, patience: float = PATIENCE_SECONDS, clock: Callable[[], float] = time.monotonic) -> None:
        self.reason = "starting"
        self._patience, self._clock = patience, clock
        self._beat: float | None = None

    def beat(self) -> None:
        """The loop goes round."""
        self._beat = self._clock()

    def stuck_seconds(self) -> float:
        """How long the loop has been silent, if that is too long; else 0."""
        age = 0.0 if self._beat is None else self._clock() - self._beat
        return age if age > self._patience else 0.0


class HealthServer(AbstractContextManager["HealthServer"]):
    """Serves until it is closed. Port 0: any free one; `port` tells which. Raises `PipeDecError` if it is taken."""

    def __init__(self, host: str, port: int, health: Health, registry: CollectorRegistry) -> None:
        class Handler(_Handler):
            pass

        Handler.health, Handler.registry = health, registry
        try:
            self._server = _Server(host, port, Handler)
        except OSError as error:
            raise PipeDecError(f"cannot listen on {host}:{port}: {error.strerror}") from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]) -> None:
        super().__init__((host, port), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listen(host, port)
        self.server_address = self.socket.getsockname()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away before its answer, as a kubelet does when its time is over, is no fault of ours."""
        expected = isinstance(sys.exception(), ConnectionError)
        _log.log(logging.DEBUG if expected else logging.ERROR, "answering %s", client_address, exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    health: Health
    registry: CollectorRegistry
    timeout = CLIENT_SECONDS

    def do_GET(self) -> None:
        match self.path.partition("?")[0]:
            case "/healthz":
                stuck = self.health.stuck_seconds()
                self._answer(f"the loop has been stuck for {stuck:.0f} s" if stuck else "")
            case "/readyz":
                self._answer(self.health.reason)
            case "/metrics":
                body, content_type = expose(self.registry, self.headers.get("Accept", ""))
                self._send(HTTPStatus.OK, body, content_type)
            case _:
                self._send(HTTPStatus.NOT_FOUND, b"try /healthz, /readyz or /metrics\n", "text/plain")

    def _answer(self, problem: str) -> None:
        status = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
        self._send(status, f"{problem or 'ok'}\n".encode(), "text/plain; charset=utf-8")

    def _send(self, status: HTTPStatus, body: bytes, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        _log.debug(format, *args)
