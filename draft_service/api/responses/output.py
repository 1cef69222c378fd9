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
    """One answer: a message, calls, or a message and then calls; and before them what was reasoned. `score` tells of a
    token's log-probabilities."""

    def __init__(self, score: Callable[[ScoredToken], Json]) -> None:
        self._score = score
        self._items: list[Json] = []  # those that have ended
        self._open: _Reasoning | _Message | _Call | None = None
        self._num_said = 0  # characters
        self._begins: int | None = None  # behind so many characters of reasoning
        self._has_called = False

    @property
    def items(self) -> list[Json]:
        """All, and the one that is being written as far as it goes."""
        return self._items if self._open is None else [*self._items, self._open.item("incomplete")]

    def take(self, delta: Delta) -> Iterator[Json]:
        """What the delta adds, as events without their numbers."""
        self._num_said += len(delta.text)
        scores = [self._score(token) for token in self._of_text(delta)]
        if delta.reasoning:
            if self._open is None:
                yield from self._begin(_Reasoning(len(self._items)))
            assert isinstance(self._open, _Reasoning)
            yield self._open.say(delta.reasoning)
        is_cut = isinstance(self._open, _Reasoning) and delta.finish == "length"
        if delta.text or scores or (delta.finish and not (delta.calls or self._has_called or is_cut)):
            if not isinstance(self._open, _Message):
                yield from self._end("completed")
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
        """Neither what is reasoned nor calls have log-probabilities here."""
        tokens = [token for token in delta.tokens if not token.is_reasoning]
        if self._begins is None and tokens:
            self._begins = tokens[0].offset
        if delta.calls or self._has_called:
            return [token for token in tokens if token.offset < (self._begins or 0) + self._num_said]
        return tokens

    def _begin(self, item: _Reasoning | _Message | _Call) -> Iterator[Json]:
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


class _OfOnePart(_Item):
    """An item whose content is one part."""

    @abstractmethod
    def _item(self, status: ItemStatus, content: list[Json]) -> Json: ...

    @abstractmethod
    def _part(self) -> Json: ...

    def item(self, status: ItemStatus) -> Json:
        return self._item(status, [self._part()])

    def begun(self) -> Iterator[Json]:
        yield self._added(self._item("in_progress", []))
        yield self._event("response.content_part.added", content_index=0, part=self._part())


class _Reasoning(_OfOnePart):
    prefix = "rs"

    def say(self, text: str) -> Json:
        self._pieces.append(text)
        return self._event("response.reasoning_text.delta", content_index=0, delta=text)

    def ended(self, item: Json) -> Iterator[Json]:
        (part,) = item["content"]
        yield self._event("response.reasoning_text.done", content_index=0, text=part["text"])
        yield self._event("response.content_part.done", content_index=0, part=part)
        yield self._done(item)

    def _item(self, status: ItemStatus, content: list[Json]) -> Json:
        return {"type": "reasoning", "id": self._id, "status": status, "summary": [], "content": content}

    def _part(self) -> Json:
        return {"type": "reasoning_text", "text": "".join(self._pieces)}


class _Message(_OfOnePart):
    prefix = "msg"

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self._scores: list[Json] = []

    def say(self, text: str, scores: Sequence[Json]) -> Json:
        self._pieces.append(text)
        self._scores += scores
        return self._event("response.output_text.delta", content_index=0, delta=text, logprobs=scores)

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
