"""A client of the endpoint with nothing but the standard library: a streamed request, or what the live page is told."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPException, InvalidURL
from typing import Any

from pipedec.errors import PipeDecError, UnavailableError

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
                    raise PipeDecError(_message(data))
                yield chunk
    except BREAKS as error:
        why = f" ({error})"
    raise PipeDecError(f"{base} closed the connection in the middle of its answer{why}")


def watch(base: str, api_key: str | None) -> Iterator[Json]:
    """What the live page is told, for as long as it comes. Raises `PipeDecError` if there is nothing to be had."""
    absent = f"{base} has no live page; the manifest's serving.livePage switches it on"
    with _open(f"{base}/live/events", None, api_key, absent) as reply:
        for line in reply:
            if line.startswith(b"data:"):
                yield _parsed(base, line.removeprefix(b"data:"))


def _open(url: str, body: Json | None, api_key: str | None, absent: str = "") -> Any:
    """The reply. Raises `PipeDecError` for any other than success, with the words `absent` for 404 if there are any."""
    headers = {"Content-Type": "application/json"}
    if api_key is not None:
        headers["Authorization"] = f"Bearer {api_key}"
    try:
        if not url.startswith(("http://", "https://")):
            raise ValueError("it must begin with http:// or https://")
        request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
        return direct.open(request)
    except urllib.error.HTTPError as error:
        if error.code == 404 and absent:
            raise PipeDecError(absent) from error
        raise PipeDecError(f"{url} answered {error.code}: {_message(_rest(error))}") from error
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


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, TypeError, KeyError):
        return body.decode(errors="replace").strip()
