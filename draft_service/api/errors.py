"""Every failure as `{"error": {"message", "type", "param", "code"}}`, OpenAI's shape."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pipedec.errors import RequestError, UnavailableError, UnfinishableError

TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "unavailable_error",
    504: "timeout_error",
}
NEVER_AGAIN = {"x-should-retry": "false"}  # else OpenAI's clients ask again by themselves


def error_body(error: Exception) -> tuple[int, dict[str, Any]]:
    """The HTTP status and the body that tell a client of `error`. Of an unforeseen one it learns nothing."""
    match error:
        case RequestError():
            return error.status, _shape(error.status, error.message, error.param, error.code)
        case UnavailableError():
            return error.status, _shape(error.status, error.message)
        case UnfinishableError():
            return 500, _shape(500, str(error), code="unfinishable")
        case RequestValidationError():
            message, param = _describe(error.errors(), error.body)
            return 400, _shape(400, message, param)
        case HTTPException():
            return error.status_code, _shape(error.status_code, error.detail)
        case _:
            return 500, _shape(500, "the server failed; its log tells why")


def error_response(error: Exception) -> Response:
    """The response for `error`, with the headers that belong to it."""
    status, body = error_body(error)
    headers: dict[str, str] = {}
    if isinstance(error, UnfinishableError) or status == 504:
        headers.update(NEVER_AGAIN)
    elif isinstance(error, UnavailableError):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    elif isinstance(error, HTTPException):
        headers.update(error.headers or {})
    # ASCII only: a message may quote what a client sent, and that need not be encodable.
    return Response(json.dumps(body, ensure_ascii=True), status, headers, "application/json")


def install_error_handlers(app: FastAPI) -> None:
    """Make `app` answer every foreseen exception with `error_response`."""

    async def answer(request: Request, error: Exception) -> Response:
        return error_response(error)

    async def answer_unmatched(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code in (404, 405):
            error.detail = f"there is no {request.method} {request.url.path}"
        elif error.status_code == 400 and isinstance(error.__cause__, Exception):
            error.detail = _unreadable(error.__cause__) or error.detail
        return error_response(error)

    for kind in (RequestError, UnavailableError, UnfinishableError, RequestValidationError):
        app.add_exception_handler(kind, answer)
    app.add_exception_handler(HTTPException, answer_unmatched)


def _unreadable(cause: Exception) -> str:
    """Why Python could not read a body that may well be JSON; empty if that is not known."""
    match cause:
        case UnicodeDecodeError():
            return f"the body is not UTF-8, as JSON must be: {cause.reason} at byte {cause.start}"
        case RecursionError():
            return "the body is nested too deeply"
        case ValueError():
            return f"the body has a number of more than {sys.get_int_max_str_digits()} digits"
    return ""


def _shape(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def _describe(errors: Sequence[Mapping[str, Any]], body: object) -> tuple[str, str | None]:
    """One sentence and one field path out of pydantic's errors, for the first field that is wrong.

    A field that may have several types gets errors for each of them. The type that the client meant is the one
    whose error is not about the type itself, or else lies deepest. What is not supported explains the rest, as tool
    calls do a message without content.
    """
    if errors[0]["type"] == "json_invalid":
        return f"the body is not JSON: {errors[0]['ctx']['error']}", None
    errors = [error for error in errors if error["type"] == "unsupported"] or errors
    first = _field_path(errors[0], body)
    located = [(_field_path(error, body), error) for error in errors]
    path, meant = max(
        (each for each in located if each[0][: len(first)] == first),
        key=lambda each: (not each[1]["type"].endswith("_type"), len(each[0])),
    )
    if not path:
        return f"the body must be a JSON object, sent as application/json: {meant['msg']}", None
    param = ".".join(path)
    return f"{param}: {meant['msg']}", param


def _field_path(error: Mapping[str, Any], body: object) -> tuple[str, ...]:
    """`error`'s location without the names of types that pydantic puts between and behind the fields."""
    path: list[str] = []
    if not error["loc"][1:]:
        return ()
    keys = error["loc"][1:]
    for index, key in enumerate(keys):
        if (isinstance(body, dict) and key in body) or (isinstance(body, list) and isinstance(key, int)):
            body = body[key]
        elif not (error["type"] == "missing" and index == len(keys) - 1):
            continue
        path.append(str(key))
    if "discriminator" in (context := error.get("ctx", {})):
        path.append(context["discriminator"].strip("'"))
    return tuple(path)
