"""From the body of `/v1/responses` to that of a chat, and back to the names of its fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from draft_service.api.openai_types import (
    Answer,
    AnyMessage,
    ChatBody,
    Content,
    Instruction,
    Result,
    SamplingBody,
    TextPart,
)
from draft_service.api.responses.items import (
    Item,
    ItemCall,
    ItemContent,
    ItemMessage,
    ItemReasoning,
    ItemResult,
    ItemText,
)
from draft_service.api.responses.request import LOGPROBS, ChosenFunction, FlatSchema, FunctionsAllowed, ResponsesBody
from draft_service.api.structure import JsonSchema, ResponseFormat
from draft_service.api.tool_types import (
    AllowedTools,
    CalledFunction,
    NamedFunction,
    NamedTool,
    Tool,
    ToolCall,
    ToolChoice,
    ToolsAllowed,
)
from pipedec.errors import RequestError

_NAMES = (
    (re.compile(r"\bresponse_format(\.json_schema)?\b"), "text.format"),
    (re.compile(r"\b(tools\.\d+)\.function\b"), r"\1"),
    (re.compile(r"\bmax_tokens\b"), "max_output_tokens"),
)


def as_chat(body: ResponsesBody) -> ChatBody:
    """The chat that asks the same. Raises `RequestError`."""
    scored = LOGPROBS in (body.include or ())
    if body.top_logprobs and not scored:
        raise RequestError(f"top_logprobs needs include to have {LOGPROBS}", "top_logprobs")
    tools = None if body.tools is None else [Tool(type="function", function=each) for each in body.tools]
    return ChatBody.model_construct(
        **{name: getattr(body, name) for name in SamplingBody.model_fields},
        messages=_messages(body),
        max_completion_tokens=body.max_output_tokens,
        logprobs=scored,
        top_logprobs=body.top_logprobs,
        chat_template_kwargs=body.chat_template_kwargs,
        reasoning_effort=None if body.reasoning is None else body.reasoning.effort,
        tools=tools,
        tool_choice=_tool_choice(body),
        parallel_tool_calls=body.parallel_tool_calls,
        response_format=_response_format(body),
    )


@contextmanager
def own_names() -> Iterator[None]:
    """What a chat is refused for is told by the names that its fields have in this route."""
    try:
        yield
    except RequestError as error:
        param = error.param and ("input" if error.param.startswith("messages") else _renamed(error.param))
        if param == "model":  # which may have any name
            raise
        raise RequestError(_renamed(error.message), param, error.code, error.status) from error


def _renamed(text: str) -> str:
    for chats, own in _NAMES:
        text = chats.sub(own, text)
    return text


def _tool_choice(body: ResponsesBody) -> ToolChoice | None:
    match body.tool_choice:
        case ChosenFunction() as chosen:
            return _named(chosen)
        case FunctionsAllowed(mode=mode, tools=tools):
            allowed = AllowedTools(mode=mode, tools=[_named(each) for each in tools])
            return ToolsAllowed(type="allowed_tools", allowed_tools=allowed)
        case choice:
            return choice


def _named(chosen: ChosenFunction) -> NamedTool:
    return NamedTool(type="function", function=NamedFunction(name=chosen.name))


def _response_format(body: ResponsesBody) -> ResponseFormat | None:
    format = None if body.text is None else body.text.format
    return JsonSchema(type="json_schema", json_schema=format) if isinstance(format, FlatSchema) else format


def _messages(body: ResponsesBody) -> list[AnyMessage]:
    messages = list[AnyMessage]()
    if body.instructions is not None:
        messages.append(Instruction(role="system", content=body.instructions))
    answer = _Answer()
    items = [ItemMessage(role="user", content=body.input)] if isinstance(body.input, str) else body.input
    for item in items:
        if not answer.takes(item):
            messages += answer.messages()
            answer = _Answer()
        match item:
            case ItemReasoning(content=thoughts, summary=summary):
                answer.thoughts += [each.text for each in thoughts or summary or ()]
            case ItemMessage(role="assistant"):
                answer.content = _content(item.content)
            case ItemMessage(role="system" | "developer" | "user" as role):
                messages.append(Instruction(role=role, content=_content(item.content)))
            case ItemCall():
                called = CalledFunction(name=item.name, arguments=item.arguments)
                answer.calls.append(ToolCall(id=item.call_id, function=called))
            case ItemResult():
                messages.append(Result(role="tool", tool_call_id=item.call_id, content=_content(item.output)))
    messages += answer.messages()
    if not messages:
        raise RequestError("nothing is said in input", "input")
    return messages


@dataclass
class _Answer:
    """One of the assistant's turns: several items, one message of a chat."""

    thoughts: list[str] = field(default_factory=list)
    content: Content | None = None
    calls: list[ToolCall] = field(default_factory=list)

    def takes(self, item: Item) -> bool:
        """Whether the item goes on with this turn."""
        match item:
            case ItemReasoning():
                return self.content is None and not self.calls
            case ItemMessage(role="assistant"):  # there are clients that have it behind the calls
                return self.content is None
            case ItemCall():
                return True
        return False

    def messages(self) -> list[AnyMessage]:
        """The turn, if there is one."""
        if self.content is None and not self.calls:
            return []
        # Not validated again: there may be more calls than in a chat's body.
        turn = Answer.model_construct(
            role="assistant",
            content=self.content,
            tool_calls=self.calls or None,
            reasoning_content="\n".join(self.thoughts) or None,
        )
        return [turn]


def _content(said: ItemContent) -> Content:
    if isinstance(said, str):
        return said
    texts = [part.text if isinstance(part, ItemText) else part.refusal for part in said]
    return [TextPart(type="text", text=text) for text in texts]
