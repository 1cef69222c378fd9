"""Replies of `/v1/responses`, whole and as streams."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from draft_service.api.errors import error_body
from draft_service.api.replies import Json, score, speculation
from draft_service.api.responses.output import Output
from draft_service.api.responses.reply_types import ResponseStatus
from draft_service.api.responses.request import ResponsesBody
from draft_service.api.run import Run
from draft_service.api.streaming import Events, event
from draft_service.api.transcript import Delta
from draft_service.text import Tokenizer
from pipedec.errors import RequestError

NEITHER = {"error": None, "incomplete_details": None}


class ResponseReply(Events):
    """The answer to one request."""

    def __init__(self, body: ResponsesBody, tokenizer: Tokenizer) -> None:
        self._output = Output(partial(score, tokenizer))
        self._num_events = 0
        self._finish = ""
        self._common: Json = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            **_asked(body),
        }

    def body(self, deltas: Sequence[Delta], run: Run) -> Json:
        """The body of an answer that is complete, of one delta."""
        for delta in deltas:
            list(self._take(delta))
        return self._final(run)

    def opening(self, run: Run) -> Iterator[bytes]:
        begun = self._response("in_progress", [], None)
        return self._numbered({"type": f"response.{type}", "response": begun} for type in ("created", "in_progress"))

    def delta(self, delta: Delta, run: Run) -> Iterator[bytes]:
        return self._numbered(self._take(delta))

    def closing(self, run: Run) -> Iterator[bytes]:
        response = self._final(run)
        return self._numbered([{"type": f"response.{response['status']}", "response": response}])

    def failure(self, error: Exception, run: Run) -> Iterator[bytes]:
        _, body = error_body(error)
        # Of the codes that OpenAI's clients know, the two that fit.
        code = "invalid_prompt" if isinstance(error, RequestError) else "server_error"
        told = {"code": code, "message": body["error"]["message"]}
        response = self._response("failed", self._output.items, run, error=told)
        return self._numbered([{"type": "response.failed", "response": response}])

    def _take(self, delta: Delta) -> Iterator[Json]:
        self._finish = delta.finish or ""
        return self._output.take(delta)

    def _final(self, run: Run) -> Json:
        if self._finish == "length":
            cut = {"reason": "max_output_tokens"}
            return self._response("incomplete", self._output.items, run, incomplete_details=cut)
        return self._response("completed", self._output.items, run)

    def _response(self, status: ResponseStatus, items: list[Json], run: Run | None, **why: Json) -> Json:
        return {
            **self._common,
            "status": status,
            "completed_at": int(time.time()) if status == "completed" else None,
            **NEITHER,
            **why,
            "output": items,
            "usage": None if run is None else _usage(run),
            **({} if run is None else speculation(run)),
        }

    def _numbered(self, events: Iterable[Json]) -> Iterator[bytes]:
        for each in events:
            yield event({**each, "sequence_number": self._num_events}, each["type"])
            self._num_events += 1


def _asked(body: ResponsesBody) -> Json:
    """What was asked for, as replies repeat it, with the defaults of what was not."""

    def plain(said: Any) -> Any:
        return said if said is None or isinstance(said, str) else said.model_dump(by_alias=True, exclude_none=True)

    asked: Json = {
        "model": body.model,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "max_tool_calls": None,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "temperature": 1.0 if body.temperature is None else body.temperature,
        "top_p": 1.0 if body.top_p is None else body.top_p,
        "presence_penalty": body.presence_penalty or 0.0,
        "frequency_penalty": body.frequency_penalty or 0.0,
        "top_logprobs": body.top_logprobs or 0,
        "tools": [each.model_dump() for each in body.tools or ()],
        "tool_choice": plain(body.tool_choice) or "auto",
        "text": {"format": {"type": "text"}} | (plain(body.text) or {}),
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "safety_identifier": body.safety_identifier,
        "prompt_cache_key": body.prompt_cache_key,
    }
    never: Json = {"previous_response_id": None, "background": False, "store": False}
    return asked | never | {"truncation": "disabled", "service_tier": "default"}


def _usage(run: Run) -> Json:
    """Tokens up to now. None counts as written to a cache: to keep them costs nothing."""
    return {
        "input_tokens": run.num_prompt_tokens,
        "input_tokens_details": {"cached_tokens": run.num_cached_tokens, "cache_write_tokens": 0},
        "output_tokens": run.num_generated_tokens,
        "output_tokens_details": {"reasoning_tokens": run.num_reasoning_tokens},
        "total_tokens": run.num_prompt_tokens + run.num_generated_tokens,
    }
