"""The page that shows the pipeline at work, and the stream behind it.

The page and its files hold nothing secret, so that they can ask for the key; `/live/events` wants it as `/v1` does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import aclosing
from importlib.resources import files

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from draft_service.api.streaming import ClientGone, while_connected
from draft_service.live.broadcast import Broadcast

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
HEADERS = {
    # Nothing from elsewhere, nothing inline: a token's text could not run even if it were not escaped.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def live_routes(broadcast: Broadcast, api_key: Callable[[], str]) -> APIRouter:
    """`/`, its files under `/live/`, and `/live/events`, which ends when the key is another."""
    router = APIRouter(include_in_schema=False)

    async def events() -> Response:
        return _Events(broadcast, api_key)

    router.add_api_route("/live/events", events)
    for file in files("draft_service.live").joinpath("static").iterdir():
        path = "/" if file.name == "index.html" else f"/live/{file.name}"
        router.add_api_route(path, _File(file.name, file.read_bytes()).answer, methods=["GET", "HEAD"])
    return router


class _File:
    """A file of the page, read once."""

    def __init__(self, name: str, content: bytes) -> None:
        self._content = content
        self._etag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        self._headers = HEADERS | {"etag": self._etag, "content-type": MEDIA_TYPES[f".{name.rpartition('.')[2]}"]}

    async def answer(self, request: Request) -> Response:
        if request.headers.get("if-none-match") == self._etag:
            return Response(status_code=304, headers=HEADERS | {"etag": self._etag})
        return Response(self._content, headers=self._headers)


class _Events(Response):
    """Frames as server-sent events, for as long as the client stays and its key is the `api_key`."""

    media_type = "text/event-stream"

    def __init__(self, broadcast: Broadcast, api_key: Callable[[], str]) -> None:
        self.status_code, self.background = 200, None
        self.init_headers({"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"})
        self._broadcast, self._api_key, self._key = broadcast, api_key, api_key()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._stream(send))
        except ClientGone:
            return

    async def _stream(self, send: Send) -> None:
        start: Message | None = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        async with aclosing(self._broadcast.watch()) as messages:
            async for message in messages:
                if start is not None:  # only now, so that one watcher too many gets a status of its own
                    await send(start)
                    start = None
                if self._api_key() != self._key:
                    break
                await send({"type": "http.response.body", "body": b"data: " + message + b"\n\n", "more_body": True})
            await send({"type": "http.response.body", "body": b""})
