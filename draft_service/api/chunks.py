"""The streams of chats and completions."""

from __future__ import annotations

from collections.abc import Iterator

from draft_service.api.errors import error_body
from draft_service.api.openai_types import StreamOptions
from draft_service.api.replies import Json, Reply, cost, usage
from draft_service.api.run import Run
from draft_service.api.streaming import Events, event
from draft_service.api.transcript import Delta


class Chunks(Events):
    """The chunks of a reply, then `[DONE]`, or an event with an `error` and no `[DONE]`. Usage comes only if asked for:
    there are clients that stumble over it."""

    def __init__(self, reply: Reply, options: StreamOptions | None) -> None:
        self._reply = reply
        self._with_usage = options is not None and bool(options.include_usage)
        self._always_usage = self._with_usage and options is not None and bool(options.continuous_usage_stats)

    def opening(self, run: Run) -> Iterator[bytes]:
        for index in range(run.num_choices):
            if choice := self._reply.opening(index):
                yield self._chunk(choice, run)

    def delta(self, delta: Delta, run: Run) -> Iterator[bytes]:
        yield self._chunk(self._reply.chunk_choice(delta), run)

    def closing(self, run: Run) -> Iterator[bytes]:
        if self._with_usage:
            yield event(self._reply.chunk([], **cost(run)))
        yield b"data: [DONE]\n\n"

    def failure(self, error: Exception, run: Run) -> Iterator[bytes]:
        _, body = error_body(error)
        yield event(body)

    def _chunk(self, choice: Json, run: Run) -> bytes:
        if not self._with_usage:
            return event(self._reply.chunk([choice]))
        return event(self._reply.chunk([choice], usage=usage(run) if self._always_usage else None))
