"""Conversations in which tools are called, as chat templates read them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from draft_service.tools.call_format import EXPLAINED, CallFormat
from draft_service.tools.scanner import ID_LENGTH
from pipedec.errors import RequestError

Message = dict[str, Any]

_INTRODUCTION = """You may use tools. Here they are, one in each line, with JSON schemas of their parameters:
<tools>
{tools}
</tools>

To use one, write its name and its arguments:
{example}
Its result is then given to you between <tool_response> and </tool_response>. Where no tool is of use, just answer."""


def with_systems_joined(messages: Sequence[Message]) -> list[Message]:
    """For a template that takes one system message: those in a row are one."""
    joined = list[Message]()
    for is_system, each in groupby(messages, lambda message: message["role"] == "system"):
        row = list(each)
        if is_system:  # all at once: there may be thousands
            row = [row[0] | {"content": "\n\n".join(message["content"] for message in row)}]
        joined += row
    return joined


def for_template(messages: Sequence[Message], format: CallFormat) -> list[Message]:
    """Messages for a template that knows tools: arguments, ids, and the content of messages that only call as it wants
    them, and results with the names of their tools."""
    return [_for_template(message, format) for message in _in_order(messages)]


def _for_template(message: Message, format: CallFormat) -> Message:
    if calls := message.get("tool_calls"):
        content = format.no_content if message["content"] is None else message["content"]
        return message | {"content": content, "tool_calls": [_call(call, format) for call in calls]}
    if message["role"] == "tool":
        return message | {"tool_call_id": _id(message["tool_call_id"])}
    return message


def _call(call: Message, format: CallFormat) -> Message:
    function = call["function"]
    arguments = function["arguments"] if format.arguments_as_text else _object(function["arguments"])
    return call | {"id": _id(call["id"]), "function": function | {"arguments": arguments}}


def _object(arguments: str) -> dict[str, Any]:
    """Arguments that were cut are no object; of functions without any some clients send nothing."""
    try:
        said = json.loads(arguments.strip() or "{}")
    except ValueError:
        said = arguments
    except RecursionError as error:
        raise RequestError("the arguments of a call are nested too deeply", "messages") from error
    return said if isinstance(said, dict) else {"arguments": said}


def _id(given: str) -> str:
    """An id that every template takes, always the same for another."""
    taken = len(given) == ID_LENGTH and given.isascii() and given.isalnum()
    return given if taken else hashlib.sha256(given.encode()).hexdigest()[:ID_LENGTH]


def _in_order(messages: Sequence[Message]) -> Iterator[Message]:
    """Results after an answer in the order of its calls, and with the names of their tools."""
    names = dict[str, str]()
    results = list[Message]()
    for message in messages:
        if message["role"] == "tool":
            name = names.get(message["tool_call_id"])
            results.append(message if name is None else {"name": name} | message)
            continue
        yield from _sorted(results, names)
        results.clear()
        if calls := message.get("tool_calls"):
            names = {call["id"]: call["function"]["name"] for call in calls}
        yield message
    yield from _sorted(results, names)


def _sorted(results: Sequence[Message], ids: Iterable[str]) -> list[Message]:
    places = {id: place for place, id in enumerate(ids)}
    return sorted(results, key=lambda result: places.get(result["tool_call_id"], len(places)))


def explained(messages: Sequence[Message], tools: Sequence[Message], *, takes_system: bool) -> list[Message]:
    """Messages for a template that knows nothing of tools: what they are is said to the model, in a system message or
    else at the beginning of what the user says; calls and results are text."""
    plain = _plain(messages)
    if not tools:
        return plain
    example = f"{EXPLAINED.opening}NAME{EXPLAINED.between}{{...}}{EXPLAINED.closing}"
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    introduction = _INTRODUCTION.format(tools=lines, example=example)
    first, wanted = plain[0], "system" if takes_system else "user"
    if first["role"] == "system" or first["role"] == wanted:
        both = (first["content"], introduction) if first["role"] == "system" else (introduction, first["content"])
        return [first | {"content": "\n\n".join(both)}, *plain[1:]]
    return [{"role": wanted, "content": introduction}, *plain]


def _plain(messages: Sequence[Message]) -> list[Message]:
    """Without calls. Results are said by the user, with what the user says then."""
    plain = list[Message]()
    is_result = False
    for message in _in_order(messages):
        was_result, is_result = is_result, message["role"] == "tool"
        if is_result:
            message = {"role": "user", "content": f"<tool_response>\n{message['content']}\n</tool_response>"}
        elif calls := message.get("tool_calls"):
            said = [message["content"]] if message["content"] else []
            message = message | {"content": "\n".join([*said, _written(calls)])}
            del message["tool_calls"]
        if was_result and message["role"] == "user":
            plain[-1] = plain[-1] | {"content": f"{plain[-1]['content']}\n{message['content']}"}
        else:
            plain.append(message)
    return plain


def _written(calls: Sequence[Message]) -> str:
    """Calls as the model wrote them."""
    functions = [call["function"] for call in calls]
    each = [f"{function['name']}{EXPLAINED.between}{function['arguments'].strip() or '{}'}" for function in functions]
    return EXPLAINED.opening + (EXPLAINED.following or "").join(each) + EXPLAINED.closing
