"""What happens to every HTTP request, whatever its route. Plain ASGI: streams and disconnects pass untouched."""

from __future__ import annotations

import hmac
import logging
import re
import uuid
from collections.abc import Callable

from prometheus_client import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from draft_service.api.errors import error_response
from pipedec.logs import fields

log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
GOOD_REQUEST_ID = re.compile(r"[!-~]{1,128}")


class RequestEnvelope:
    """Around everything else: the response has the request's `X-Request-Id`, or a new one, and is counted by route and
    status; what nobody foresaw is logged and becomes a 500. While the service is `leaving`, responses close their
    connection: whoever keeps one is led to a service that stays."""

    def __init__(self, app: ASGIApp, responses: Counter, leaving: Callable[[], bool]) -> None:
        self._app, self._responses, self._leaving = app, responses, leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get(REQUEST_ID, "")
        request_id = given if GOOD_REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_enveloped(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
                route = getattr(scope.get("route"), "path", "unmatched")
                if self._leaving():
                    MutableHeaders(scope=message)["connection"] = "close"
                self._responses.labels(route, str(message["status"])).inc()
            await send(message)

        try:
            await self._app(scope, receive, send_enveloped)
        except Exception as error:
            if started:
                raise
            log.exception("request failed", extra=fields(request=request_id))
            await error_response(error)(scope, receive, send_enveloped)


class BearerAuth:
    """Lets nobody without the key into `/v1`, or see the pipeline at work. Health and metrics stay open, for probes
    have no key, and so does the page that asks a person for it."""

    def __init__(self, app: ASGIApp, api_key: Callable[[], str]) -> None:
        self._app, self._api_key = app, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        locked = scope["type"] == "http" and f"{scope['path']}/".startswith(("/v1/", "/live/events/"))
        if locked and not self._authorized(scope):
            message = "a valid API key is needed, as Authorization: Bearer <key>"
            refusal = error_response(HTTPException(401, message, {"www-authenticate": "Bearer"}))
            return await refusal(scope, receive, send)
        await self._app(scope, receive, send)

    def _authorized(self, scope: Scope) -> bool:
        scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        given = f"{scheme.lower()} {key.strip()}".encode()
        expected = f"bearer {self._api_key()}".encode()
        return hmac.compare_digest(given, expected)  # takes as long for a near miss as for any other


class BodyLimit:
    """Refuses bodies of more than `max_bytes`: before they are parsed, and before they are read if they declare it.
    Refuses compressed ones too: nobody here unpacks them."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        declared = Headers(scope=scope).get("content-length", "0")
        encoding = Headers(scope=scope).get("content-encoding", "").strip() or "identity"
        num_bytes = 0

        async def receive_limited() -> Message:
            nonlocal num_bytes
            if not declared.isdecimal() or int(declared) > self._max_bytes:
                raise too_large
            if encoding.lower() != "identity":
                raise HTTPException(415, f"the body is encoded as {encoding}; send it plain, without Content-Encoding")
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                raise too_large
            return message

        too_large = HTTPException(413, f"the body is larger than {self._max_bytes} bytes")
        await self._app(scope, receive_limited, send)
