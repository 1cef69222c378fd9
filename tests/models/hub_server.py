"""The part of the Hugging Face Hub's HTTP interface that a download uses, over folders of this machine."""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def dropping() -> Iterator[str]:
    """Address of a server that ends every connection without a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drop() -> None:
            with suppress(OSError):  # the end of the test
                while True:
                    listening.accept()[0].close()

        thread = Thread(target=drop)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


@contextmanager
def hub(repositories: Mapping[str, Path], gated: frozenset[str] = frozenset()) -> Iterator[tuple[str, list[str]]]:
    """Address of a running Hub, and the files it has sent. Revision `main` is `COMMIT`; there is no other."""
    sent: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, body: bool) -> None:
            parts = self.path.partition("?")[0].strip("/").split("/")
            name = "/".join(parts[2:4] if parts[0] == "api" else parts[:2])
            if name in gated:
                return self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
            if name not in repositories:
                return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
            revision = parts[5] if parts[0] == "api" else parts[3]
            if revision not in ("main", COMMIT):
                return self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if parts[0] == "api":
                return self._send(200, self._listing(repositories[name], parts[4]), {})
            file = repositories[name].joinpath(*parts[4:])
            if not file.is_file():
                return self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
            content = file.read_bytes()
            if body:
                sent.append("/".join(parts[4:]))
            headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
            self._send(200, content, headers, body=body)

        def _listing(self, folder: Path, kind: str) -> bytes:
            files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
            names = [str(file.relative_to(folder)) for file in files]
            if kind == "tree":
                entries = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                    for name, file in zip(names, files, strict=True)
                ]
                return json.dumps(entries).encode()
            return json.dumps(
                {"id": folder.name, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
            ).encode()

        def _send(self, status: int, content: bytes, headers: Mapping[str, str], body: bool = True) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body and self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", sent
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
