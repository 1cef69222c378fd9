"""A client of the endpoint with nothing but the standard library: a streamed request, or what the live page is told."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

from pipedec.errors import PipeDecError, UnavailableError

direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs without a proxy: an endpoint is on this machine or on a network near by."""

Json = dict[str, Any]


def served_model(base: str, api_key: str | None) -> str:
    """Name of the model that an endpoint serves. Raises `UnavailableError` when nothing answers there."""
    with _open(f"{base}/v1/models", None, api_key) as reply:
        models = json.load(reply)
    return str(models["data"][0]["id"])


def stream(base: str, route: str, body: Json, api_key: str | None) -> Iterator[Json]:
    """The chunks of a streamed reply. Raises `PipeDecError` with the endpoint's own words if there is an error, also
    in the middle of the stream, or if it ends without its regular end."""
    with _open(f"{base}{route}", body | {"stream": True}, api_key) as reply:
        for line in reply:
            if not line.startswith(b"data:"):
                continue
            data = line.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                return
            chunk = json.loads(data)
            if "error" in chunk:
                raise PipeDecError(chunk["error"]["message"])
            yield chunk
    raise PipeDecError(f"{base} closed the connection in the middle of its answer")


def watch(base: str, api_key: str | None) -> Iterator[Json]:
    """What the live page is told, for as long as it comes. Raises `PipeDecError` if there is nothing to be had."""
    with _open(f"{base}/live/events", None, api_key) as reply:
        for line in reply:
            if line.startswith(b"data:"):
                yield json.loads(line.removeprefix(b"data:"))


def _open(url: str, body: Json | None, api_key: str | None) -> Any:
    headers = {"Content-Type": "application/json"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    try:
        if not url.startswith(("http://", "https://")):
            raise ValueError("it must begin with http:// or https://")
        request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    except ValueError as error:
        raise PipeDecError(f"{url} is not a URL: {error}") from error
    try:
        return direct.open(request)
    except urllib.error.HTTPError as error:
        with error:
            raise PipeDecError(f"{url} answered {error.code}: {_message(error.read())}") from error
    except OSError as error:
        raise UnavailableError(
            f"nothing answers at {url} ({getattr(error, 'reason', error)}); start it with `pipedec up`, or give -f"
        ) from error


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, TypeError, KeyError):
        return body.decode(errors="replace").strip()
