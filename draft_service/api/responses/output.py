"""The items of an answer as its deltas come, and the events of a stream that tell of them. Pure."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

from draft_service.api.replies import Json
from draft_service.api.responses.reply_types import ItemStatus
from draft_service.api.transcript import Delta, ScoredToken
from draft_service.tools.scanner import CallDelta


class Output:
    """One answer: a message, calls, or a message and then calls. `score` tells of a token's log-probabilities.

    What a model reasons would be an item of its own before the message, of type "reasoning": another `_Item`, whose
    pieces are `response.reasoning_text.delta`, begun by `take` before it looks at the text.
    """

    def __init__(self, score: Callable[[ScoredToken], Json]) -> None:
        self._score = score
        self._items: list[Json] = []  # those that have ended
        self._open: _Message | _Call | None = None
        self._num_said = 0  # characters
        self._has_called = False

    @property
    def items(self) -> list[Json]:
        """All, and the one that is being written as far as it goes."""
        return self._items if self._open is None else [*self._items, self._open.item("incomplete")]

    def take(self, delta: Delta) -> Iterator[Json]:
        """What the delta adds, as events without their numbers."""
        self._num_said += len(delta.text)
        scores = [self._score(token) for token in self._of_text(delta)]
        if delta.text or scores or (delta.finish and not (delta.calls or self._has_called)):
            if self._open is None:
                yield from self._begin(_Message(len(self._items)))
            assert isinstance(self._open, _Message)
            if delta.text or scores:
                yield self._open.say(delta.text, scores)
        for call in delta.calls:
            if call.id:
                yield from self._end("completed")
                yield from self._begin(_Call(len(self._items), call))
                self._has_called = True
            assert isinstance(self._open, _Call)
            if call.arguments:
                yield self._open.say(call.arguments)
        if delta.finish:
            whole = delta.finish == "tool_calls" if self._has_called else delta.finish == "stop"
            yield from self._end("completed" if whole else "incomplete")

    def _of_text(self, delta: Delta) -> Sequence[ScoredToken]:
        """Calls have no log-probabilities here."""
        if delta.calls or self._has_called:
            return [token for token in delta.tokens if token.offset < self._num_said]
        return delta.tokens

    def _begin(self, item: _Message | _Call) -> Iterator[Json]:
        self._open = item
        return item.begun()

    def _end(self, status: ItemStatus) -> Iterator[Json]:
        if self._open is not None:
            ended, self._open = self._open, None
            self._items.append(ended.item(status))
            yield from ended.ended(self._items[-1])


class _Item(ABC):
    """An item that is being written, the one of this index."""

    prefix: ClassVar[str]

    def __init__(self, index: int) -> None:
        self._id, self._index, self._pieces = f"{self.prefix}_{uuid.uuid4().hex}", index, list[str]()

    @abstractmethod
    def item(self, status: ItemStatus) -> Json:
        """As far as it goes."""

    @abstractmethod
    def begun(self) -> Iterator[Json]: ...

    @abstractmethod
    def ended(self, item: Json) -> Iterator[Json]: ...

    def _added(self, item: Json) -> Json:
        return {"type": "response.output_item.added", "output_index": self._index, "item": item}

    def _done(self, item: Json) -> Json:
        return {"type": "response.output_item.done", "output_index": self._index, "item": item}

    def _event(self, type: str, **fields: object) -> Json:
        return {"type": type, "item_id": self._id, "output_index": self._index, **fields}


class _Message(_Item):
    prefix = "msg"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._scores: list[Json] = []

    def say(self, text: str, scores: Sequence[Json]) -> Json:
        self._pieces.append(text)
        self._scores += scores
        return self._event("response.output_text.delta", content_index=0, delta=text, logprobs=scores)

    def item(self, status: ItemStatus) -> Json:
        return self._item(status, [self._part()])

    def begun(self) -> Iterator[Json]:
        yield self._added(self._item("in_progress", []))
        yield self._event("response.content_part.added", content_index=0, part=self._part())

    def ended(self, item: Json) -> Iterator[Json]:
        (part,) = item["content"]
        told = {"text": part["text"], "logprobs": part["logprobs"]}
        yield self._event("response.output_text.done", content_index=0, **told)
        yield self._event("response.content_part.done", content_index=0, part=part)
        yield self._done(item)

    def _item(self, status: ItemStatus, content: list[Json]) -> Json:
        return {"type": "message", "id": self._id, "status": status, "role": "assistant", "content": content}

    def _part(self) -> Json:
        text = "".join(self._pieces)
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._scores)}


class _Call(_Item):
    prefix = "fc"

    def __init__(self, index: int, call: CallDelta) -> None:
        super().__init__(index)
        self._call_id, self._name = call.id, call.name

    def say(self, arguments: str) -> Json:
        self._pieces.append(arguments)
        return self._event("response.function_call_arguments.delta", delta=arguments)

    def item(self, status: ItemStatus) -> Json:
        return {
            "type": "function_call",
            "id": self._id,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._pieces),
            "status": status,
        }

    def begun(self) -> Iterator[Json]:
        yield self._added(self.item("in_progress"))

    def ended(self, item: Json) -> Iterator[Json]:
        fields = {"name": self._name, "arguments": item["arguments"]}
        yield self._event("response.function_call_arguments.done", **fields)
        yield self._done(item)
