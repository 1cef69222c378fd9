"""What the OpenAPI document says of responses."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from pydantic import TypeAdapter

from draft_service.api.reply_types import ChatChunk, CompletionChunk, ErrorReply
from draft_service.api.responses.reply_types import ResponseEvent, ResponseResource

Responses = dict[int | str, dict[str, Any]]

SCHEMAS = "#/components/schemas/{model}"
RETRY_AFTER = {"Retry-After": {"description": "Seconds to wait.", "schema": {"type": "integer", "minimum": 1}}}
ERRORS: Responses = {
    400: {"description": "The request is wrong; `param` is the path of the field."},
    401: {"description": "No valid API key."},
    404: {"description": "There is no such model."},
    413: {"description": "The body is too large."},
    415: {"description": "The body is compressed."},
    429: {"description": "Too many requests wait already.", "headers": RETRY_AFTER},
    500: {"description": "The server failed."},
    503: {"description": "The pipeline is not ready.", "headers": RETRY_AFTER},
    504: {"description": "The request took longer than the server allows."},
}
STREAMED: dict[str, Any] = {
    "ChatChunk": ChatChunk,
    "CompletionChunk": CompletionChunk,
    "ResponseEvent": ResponseEvent,
}


def errors(*statuses: int) -> Responses:
    """The documentation of these error statuses."""
    return {status: ERRORS[status] | {"model": ErrorReply} for status in statuses}


def answer(model: type, chunk: type) -> dict[str, Any]:
    """The documentation of a success: a body of `model`, or with `stream` events that carry chunks."""
    chunk_or_error = _json({"anyOf": [_schema(each.__name__) for each in (chunk, ErrorReply)]})
    return {
        "model": model,
        "description": "The answer, or with `stream` its chunks; an answer that is whole ends with `[DONE]`.",
        "content": _stream(data={"type": "string", "anyOf": [{"const": "[DONE]"}, chunk_or_error]}),
    }


def response() -> dict[str, Any]:
    """That of `/v1/responses`."""
    data = {"type": "string", **_json(_schema("ResponseEvent"))}
    return {
        "model": ResponseResource,
        "description": "The answer, or with `stream` events, of which the last has the answer.",
        "content": _stream(event={"type": "string"}, data=data),
    }


def _schema(name: str) -> dict[str, Any]:
    return {"$ref": SCHEMAS.format(model=name)}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"contentMediaType": "application/json", "contentSchema": schema}


def _stream(**fields: dict[str, Any]) -> dict[str, Any]:
    """Of events with these fields."""
    event = {"type": "object", "properties": fields, "required": list(fields)}
    return {"text/event-stream": {"itemSchema": event}}


class DocumentedApp(FastAPI):
    """FastAPI, with the chunks of streams and without the 422 that it documents for every route and we never send."""

    def openapi(self) -> dict[str, Any]:
        document = super().openapi()
        schemas = document["components"]["schemas"]
        for operations in document["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for unused in ("HTTPValidationError", "ValidationError"):
            schemas.pop(unused, None)
        for name, streamed in STREAMED.items():
            schema = TypeAdapter(streamed).json_schema(ref_template=SCHEMAS)
            schemas |= schema.pop("$defs") | {name: schema}
        return document
