"""The format of calls, learnt from a chat template: from what it makes of conversations in which tools were called."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from draft_service.text import USER
from draft_service.tools.call_format import CallFormat
from pipedec.errors import RequestError

Message = Mapping[str, Any]

_FIRST, _SECOND = "look_up_first", "look_up_second"
_ARGUMENTS = {"phrase": "bcdfg"}  # in no tool's definition
_TEXT = "Let me look."
_RESULT = "It is hjklm."
_IDS = ("a1b2c3d4e", "f5g6h7i8j")  # templates of Mistral's insist on nine such characters
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Looks something up.",
            "parameters": {
                "type": "object",
                "properties": {"number": {"type": "integer", "description": "Which one."}},
                "required": ["number"],
            },
        },
    }
    for name in (_FIRST, _SECOND)
]
# What templates add to calls of before, and models never write.
_GIVEN_IDS = re.compile(rf',\s*"id":\s*"({"|".join(_IDS)})"|\[CALL_ID\]({"|".join(_IDS)})')
_LIKE_ANY_JSON = re.compile(r'[\s\[{]*"\w+":\s*"')
_OF_NAMES = re.compile(r"[A-Za-z0-9_.:/-]")


class Render(Protocol):
    """A prompt of messages, up to where an answer begins if it `opens` one. Raises `RequestError` if the template
    refuses them."""

    def __call__(self, messages: Sequence[Message], tools: Sequence[Message] = (), /, *, opens: bool = True) -> str: ...


class NotLearntError(Exception):
    """The template writes calls in a way that has no `CallFormat`."""


class _Call(NamedTuple):
    """The text of an answer's call: before its name, between that and its arguments, and behind them."""

    before: str
    between: str
    behind: str


def learn(render: Render, ends: Collection[str], reasoning: str = "") -> CallFormat:
    """The format of a template whose answers are ended by the tokens with these names, and whose prompts may end with a
    tag that begins `reasoning`. Raises `NotLearntError`."""
    reasons = dict[str, None]()
    for no_content in (None, ""):
        for arguments_as_text in (False, True):
            try:
                return _Lesson(render, tuple(ends), reasoning, no_content, arguments_as_text).learnt()
            except (NotLearntError, RequestError) as error:
                reasons[str(error)] = None
    raise NotLearntError("; ".join(reasons))


@dataclass(frozen=True, slots=True)
class _Lesson:
    render: Render
    ends: tuple[str, ...]
    reasoning: str
    no_content: str | None
    arguments_as_text: bool

    def learnt(self) -> CallFormat:
        header = self.render([USER], _TOOLS)
        if _FIRST not in header:
            raise NotLearntError("the chat template does not name the tools")
        if self.reasoning:  # which earlier answers are without
            header = re.sub(rf"{re.escape(self.reasoning)}\s*\Z", "", header)
        call = _taken_apart(self._answer(header, self.no_content, _FIRST), _FIRST)
        if not call.before.strip():
            raise NotLearntError("nothing comes before the name of a call")
        if not call.between or _OF_NAMES.match(call.between):
            raise NotLearntError("the name of a call does not end")
        if _has_id("".join(call)) or re.search(r'"\d+"', call.before):
            raise NotLearntError("the model would have to number its calls")
        return CallFormat(
            call.before.lstrip(),
            call.between,
            call.behind.rstrip(),
            following=self._following(header, call),
            # What begins like any JSON is a call only where the template has nothing said before.
            after_text=not _LIKE_ANY_JSON.fullmatch(call.before) or self._is_after_text(header, call),
            no_content=self.no_content,
            arguments_as_text=self.arguments_as_text,
        )

    def _answer(self, header: str, content: str | None, *names: str) -> str:
        """What an answer with these calls was."""
        arguments = json.dumps(_ARGUMENTS) if self.arguments_as_text else _ARGUMENTS
        calls = [
            {"id": one, "type": "function", "function": {"name": name, "arguments": arguments}}
            for one, name in zip(_IDS, names, strict=False)
        ]
        results = [
            {"role": "tool", "tool_call_id": call["id"], "name": name, "content": _RESULT}
            for call, name in zip(calls, names, strict=True)
        ]
        called = {"role": "assistant", "content": content, "tool_calls": calls}
        text = self.render([USER, called, *results], _TOOLS, opens=False)
        if not text.startswith(header):
            raise NotLearntError("an answer with calls does not begin where the prompt ends")
        text = text[len(header) :]
        last = text.rfind(next(iter(_ARGUMENTS.values())))
        if last < 0:
            raise NotLearntError("the arguments of calls are not in prompts")
        end = min((at for each in self.ends if (at := text.find(each, last)) >= 0), default=len(text))
        if _RESULT in text[:end] or end == len(text):
            raise NotLearntError("no end token ends an answer with calls")
        return _GIVEN_IDS.sub("", text[:end])

    def _following(self, header: str, call: _Call) -> str | None:
        """What is between two calls; None where two cannot be."""
        try:
            first = _taken_apart(self._answer(header, self.no_content, _FIRST, _SECOND), _FIRST)
            second = _taken_apart(first.behind, _SECOND)
        except (RequestError, NotLearntError):
            return None
        if second.between != call.between and _numberless(second.between) == _numberless(call.between):
            raise NotLearntError("the model would have to number its calls")
        is_alike = first[:2] == call[:2] and second[1:] == call[1:]
        return second.before if is_alike and second.before.strip() and not _has_id(second.before) else None

    def _is_after_text(self, header: str, call: _Call) -> bool:
        try:
            text = self._answer(header, _TEXT, _FIRST)
        except (RequestError, NotLearntError):
            return False
        _, found, gap = _taken_apart(text, _FIRST).before.partition(_TEXT)
        return bool(found) and gap.strip() == call.before.strip()


def _taken_apart(text: str, name: str) -> _Call:
    before, found, behind = text.partition(name)
    start = behind.find("{")
    if not found or start < 0:
        raise NotLearntError("a call has no name with a JSON object behind it")
    try:
        arguments, end = json.JSONDecoder().raw_decode(behind, start)
    except ValueError as error:
        raise NotLearntError("the arguments of calls are not JSON") from error
    if arguments != _ARGUMENTS:
        raise NotLearntError("the arguments of calls are no JSON object of their own")
    return _Call(before, behind[:start], behind[end:])


def _numberless(text: str) -> str:
    return re.sub(r"\d+", "#", text)


def _has_id(text: str) -> bool:
    return any(one in text for one in _IDS)
