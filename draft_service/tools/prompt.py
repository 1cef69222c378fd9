"""Conversations in which tools are called, as chat templates read them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from draft_service.tools.call_format import EXPLAINED, CallFormat

Message = dict[str, Any]

_INTRODUCTION = """You may use tools. Here they are, one in each line, with JSON schemas of their parameters:
<tools>
{tools}
</tools>

To use one, write its name and its arguments:
{example}
Its result is then given to you between <tool_response> and </tool_response>. Where no tool is of use, just answer."""


def for_template(messages: Sequence[Message], form: CallFormat) -> list[Message]:
    """Messages for a template that knows tools. As clients write them, arguments are text, and calls have no content.
    Results name their tool."""
    names = {call["id"]: call["function"]["name"] for message in messages for call in message.get("tool_calls", ())}
    return [_for_template(message, form, names) for message in messages]


def _for_template(message: Message, form: CallFormat, names: Mapping[str, str]) -> Message:
    if calls := message.get("tool_calls"):
        content = form.no_content if message["content"] is None else message["content"]
        return message | {"content": content, "tool_calls": [_call(call, form) for call in calls]}
    if message["role"] == "tool" and (name := names.get(message["tool_call_id"])):
        return {"name": name} | message
    return message


def _call(call: Message, form: CallFormat) -> Message:
    if form.arguments_as_text:
        return call
    function = call["function"]
    return call | {"function": function | {"arguments": json.loads(function["arguments"])}}


def explained(messages: Sequence[Message], tools: Sequence[Message], *, takes_system: bool) -> list[Message]:
    """Messages for a template that knows nothing of tools: what they are is said to the model, in a system message or
    else at the beginning of what the user says; calls and results are text."""
    plain = list(_plain(messages))
    if not tools:
        return plain
    example = f"{EXPLAINED.opening}NAME{EXPLAINED.between}{{...}}{EXPLAINED.closing}"
    lines = "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
    introduction = _INTRODUCTION.format(tools=lines, example=example)
    first = plain[0]
    if first["role"] == "system":
        return [first | {"content": f"{first['content']}\n\n{introduction}"}, *plain[1:]]
    if takes_system:
        return [{"role": "system", "content": introduction}, *plain]
    return [first | {"content": f"{introduction}\n\n{first['content']}"}, *plain[1:]]


def _plain(messages: Sequence[Message]) -> Iterator[Message]:
    results = list[str]()
    for message in messages:
        if message["role"] == "tool":
            results.append(f"<tool_response>\n{message['content']}\n</tool_response>")
            continue
        if results:
            yield {"role": "user", "content": "\n".join(results)}
            results.clear()
        if calls := message.get("tool_calls"):
            said = [message["content"]] if message["content"] else []
            yield {"role": message["role"], "content": "\n".join([*said, _written(calls)])}
        else:
            yield message
    if results:
        yield {"role": "user", "content": "\n".join(results)}


def _written(calls: Sequence[Message]) -> str:
    """Calls as the model wrote them."""
    functions = [call["function"] for call in calls]
    each = [f"{function['name']}{EXPLAINED.between}{function['arguments']}" for function in functions]
    return EXPLAINED.opening + (EXPLAINED.following or "").join(each) + EXPLAINED.closing
