"""What the OpenAPI document says of responses."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from draft_service.api.reply_types import ErrorReply

Responses = dict[int | str, dict[str, Any]]

RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}
ERRORS: Responses = {
    400: {"description": "The request is wrong; `param` is the path of the field."},
    401: {"description": "No valid API key."},
    404: {"description": "There is no such model."},
    413: {"description": "The body is too large."},
    429: {"description": "Too many requests wait already.", "headers": RETRY_AFTER},
    500: {"description": "The server failed."},
    503: {"description": "The pipeline is not ready.", "headers": RETRY_AFTER},
}


def errors(*statuses: int) -> Responses:
    """The documentation of these error statuses."""
    return {status: ERRORS[status] | {"model": ErrorReply} for status in statuses}


def event_stream(model: type) -> dict[str, Any]:
    """The documentation of a success: a body of `model`, or events."""
    description = "`data:` lines, each a JSON chunk with the same `id`, then `data: [DONE]`; see `stream`."
    return {
        "model": model,
        "description": "The answer; with `stream` as server-sent events.",
        "content": {"text/event-stream": {"schema": {"type": "string", "description": description}}},
    }


class DocumentedApp(FastAPI):
    """FastAPI, without the 422 that it documents for every route and we never send."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(unused, None)
        return document
