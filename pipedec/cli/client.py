"""A client of the endpoint with nothing but the standard library: a streamed request, or what the live page is told."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, InvalidURL
from typing import Any

from pipedec.errors import PipeDecError, RequestError, UnavailableError

direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs without a proxy: an endpoint is on this machine or on a network near by."""

Json = dict[str, Any]

BREAKS = (OSError, HTTPException)  # of a connection, by either side


def served_model(base: str, api_key: str | None) -> str:
    """Name of the model that an endpoint serves. Raises `UnavailableError` when nothing answers there."""
    url = f"{base}/v1/models"
    try:
        with _open(url, None, api_key) as reply:
            models = json.load(reply)
        return str(models["data"][0]["id"])
    except BREAKS as error:
        raise PipeDecError(f"{base} closed the connection in the middle of its answer ({error})") from error
    except (ValueError, LookupError, TypeError) as error:
        raise PipeDecError(f"{url} names no model; is it another service?") from error


def stream(base: str, route: str, body: Json, api_key: str | None) -> Iterator[Json]:
    """The chunks of a streamed reply. Raises `PipeDecError` with the endpoint's own words if there is an error, also
    in the middle of the stream, or if it ends without its regular end."""
    why = ""
    try:
        with _open(f"{base}{route}", body | {"stream": True}, api_key) as reply:
            for line in reply:
                if not line.startswith(b"data:"):
                    continue
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                chunk = _parsed(base, data)
                if "error" in chunk:
                    raise PipeDecError(_said(data, "message"))
                yield chunk
    except BREAKS as error:
        why = f" ({error})"
    raise PipeDecError(f"{base} closed the connection in the middle of its answer{why}")


def watch(base: str, api_key: str | None) -> Iterator[Json]:
    """What the live page is told, for as long as it comes. Raises `PipeDecError` if there is nothing to be had."""
    try:
        events = _open(f"{base}/live/events", None, api_key)
    except RequestError as error:
        if error.status != 404:
            raise
        raise PipeDecError(f"{base} has no live page; the manifest's serving.livePage switches it on") from error
    with events as reply:
        for line in reply:
            if line.startswith(b"data:"):
                yield _parsed(base, line.removeprefix(b"data:"))


def _open(url: str, body: Json | None, api_key: str | None) -> Any:
    """The reply. Raises `PipeDecError` unless it is a success; `RequestError` with what the endpoint says of a mistake
    in the request."""
    headers = {"Content-Type": "application/json"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    try:
        if not url.startswith(("http://", "https://")):
            raise ValueError("it must begin with http:// or https://")
        request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
        return direct.open(request)
    except urllib.error.HTTPError as error:
        refusal = _rest(error)
        message = f"{url} answered {error.code}: {_said(refusal, 'message')}"
        if error.code >= 500:
            raise PipeDecError(message) from error
        raise RequestError(message, code=_said(refusal, "code"), status=error.code) from error
    except OSError as error:
        raise UnavailableError(
            f"nothing answers at {url} ({getattr(error, 'reason', error)}); start it with `pipedec up`, or give -f"
        ) from error
    except (ValueError, InvalidURL) as error:
        raise PipeDecError(f"{url} is not a URL: {error}") from error
    except HTTPException as error:
        raise PipeDecError(f"what answers at {url} does not speak HTTP; is it another port?") from error


def _parsed(base: str, data: bytes) -> Json:
    try:
        parsed = json.loads(data)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise PipeDecError(f"{base} does not speak as PipeDec does; is it another service?")
    return parsed


def _rest(error: urllib.error.HTTPError) -> bytes:
    try:
        with error:
            return error.read()
    except BREAKS:
        return b""


def _said(body: bytes, name: str) -> str:
    """What an error's body has under this name; the whole body if it is not OpenAI's."""
    try:
        return str(json.loads(body)["error"][name])
    except (ValueError, TypeError, KeyError):
        return body.decode(errors="replace").strip()
