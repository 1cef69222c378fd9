"""The format of calls, learnt from a chat template: from what it makes of conversations in which tools were called."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from draft_service.tools.call_format import CallFormat
from pipedec.errors import RequestError

Message = Mapping[str, Any]

FIRST, SECOND = "look_up_first", "look_up_second"
ARGUMENTS = {"phrase": "bcdfg"}  # in no tool's definition
TEXT = "Let me look."
IDS = ("a1b2c3d4e", "f5g6h7i8j")  # templates of Mistral's insist on nine such characters
TOOLS = [
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
    for name in (FIRST, SECOND)
]
# What templates add to calls of before, and models never write.
GIVEN_IDS = re.compile(rf',\s*"id":\s*"({"|".join(IDS)})"|\[CALL_ID\]({"|".join(IDS)})')
BARE = re.compile(r'[\s\[{]*"\w+":\s*"')
USER: Message = {"role": "user", "content": "What is it?"}


class Render(Protocol):
    """A prompt of messages, up to where an answer begins if it `opens` one. Raises `RequestError` if the template
    refuses them."""

    def __call__(self, messages: Sequence[Message], tools: Sequence[Message] = (), /, *, opens: bool = True) -> str: ...


class NotLearntError(Exception):
    """The template writes calls in a way that has no `CallFormat`."""


def learn(render: Render, ends: Collection[str]) -> CallFormat:
    """The format of a template whose answers are ended by the tokens with these names. Raises `NotLearntError`."""
    reasons = []
    for no_content in (None, ""):
        for arguments_as_text in (False, True):
            try:
                return _Lesson(render, tuple(ends), no_content, arguments_as_text).format()
            except (NotLearntError, RequestError) as error:
                reasons.append(str(error))
    raise NotLearntError(reasons[0])


@dataclass(frozen=True, slots=True)
class _Lesson:
    render: Render
    ends: tuple[str, ...]
    no_content: str | None
    arguments_as_text: bool

    def format(self) -> CallFormat:
        header = self.render([USER], TOOLS)
        if FIRST not in header:
            raise NotLearntError("it does not name the tools")
        # A prompt may begin the thoughts of a model that thinks, and what it said before is without them.
        header = re.sub(r"<think>\s*\Z", "", header)
        opening, between, closing = self._parts(self._answer(header, self.no_content, FIRST), FIRST)
        if not opening.strip():
            raise NotLearntError("nothing comes before the name")
        if any(one in opening + between + closing for one in IDS) or re.search(r'"\d+"', opening):
            raise NotLearntError("the model would have to number its calls")
        return CallFormat(
            opening.lstrip(),
            between,
            closing.rstrip(),
            following=self._following(header, opening, between, closing),
            # What begins like any JSON is a call only where the template has nothing said before.
            after_text=not BARE.fullmatch(opening) or self._is_after_text(header, opening),
            no_content=self.no_content,
            arguments_as_text=self.arguments_as_text,
        )

    def _answer(self, header: str, content: str | None, *names: str) -> str:
        """What an answer with these calls was."""
        arguments = json.dumps(ARGUMENTS) if self.arguments_as_text else ARGUMENTS
        calls = [
            {"id": one, "type": "function", "function": {"name": name, "arguments": arguments}}
            for one, name in zip(IDS, names, strict=False)
        ]
        results = [
            {"role": "tool", "tool_call_id": call["id"], "name": name, "content": "It is."}
            for call, name in zip(calls, names, strict=True)
        ]
        called = {"role": "assistant", "content": content, "tool_calls": calls}
        text = self.render([USER, called, *results], TOOLS, opens=False)
        if not text.startswith(header):
            raise NotLearntError("an answer does not begin where the prompt ends")
        text = text[len(header) :]
        last = text.rfind(next(iter(ARGUMENTS.values())))
        ends = [at for end in self.ends if (at := text.find(end, last)) >= 0]
        if last < 0 or not ends:
            raise NotLearntError("calls do not end with an end token" if ends else "arguments are not in it")
        return GIVEN_IDS.sub("", text[: min(ends)])

    @staticmethod
    def _parts(text: str, name: str) -> tuple[str, str, str]:
        """What is before the name, between it and the arguments, and behind them."""
        before, found, behind = text.partition(name)
        start = behind.find("{")
        if not found or start < 0:
            raise NotLearntError("a call has no name with a JSON object behind it")
        try:
            arguments, end = json.JSONDecoder().raw_decode(behind, start)
        except ValueError as error:
            raise NotLearntError("arguments are not JSON") from error
        if arguments != ARGUMENTS:
            raise NotLearntError("arguments are not a JSON object of their own")
        return before, behind[:start], behind[end:]

    def _following(self, header: str, *format: str) -> str | None:
        """What is between two calls; None where two cannot be."""
        opening, between, closing = format
        try:
            text = self._answer(header, self.no_content, FIRST, SECOND)
            first, second, rest = self._parts(text, FIRST)
            following, *others = self._parts(rest, SECOND)
        except (RequestError, NotLearntError):
            return None
        is_alike = (first, second, others) == (opening, between, [between, closing])
        return following if is_alike and following.strip() and not any(one in following for one in IDS) else None

    def _is_after_text(self, header: str, opening: str) -> bool:
        try:
            before, *_ = self._parts(self._answer(header, TEXT, FIRST), FIRST)
        except (RequestError, NotLearntError):
            return False
        _, found, gap = before.partition(TEXT)
        return bool(found) and gap.strip() == opening.strip()
