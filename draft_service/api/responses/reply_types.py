"""Replies and events as the OpenAPI document describes them, held together with the true ones by the tests."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from draft_service.api.reply_types import ChatLogprob, Count, Speculation

Json = dict[str, Any]  # as the request has it
ItemStatus = Literal["in_progress", "completed", "incomplete"]
ResponseStatus = ItemStatus | Literal["failed"]


class OutputText(TypedDict):
    type: Literal["output_text"]
    text: str
    annotations: list[Json]
    logprobs: list[ChatLogprob]


class OutputMessage(TypedDict):
    type: Literal["message"]
    id: str
    status: ItemStatus
    role: Literal["assistant"]
    content: list[OutputText]


class ReasoningText(TypedDict):
    type: Literal["reasoning_text"]
    text: str


class OutputReasoning(TypedDict):
    """What was reasoned before the items behind it."""

    type: Literal["reasoning"]
    id: str
    status: ItemStatus
    summary: list[Json]  # always empty
    content: list[ReasoningText]


class OutputCall(TypedDict):
    """`arguments` are a JSON object, as text; the result of the call is sent with its `call_id`."""

    type: Literal["function_call"]
    id: str
    call_id: str
    name: str
    arguments: str
    status: ItemStatus


OutputItem = Annotated[OutputReasoning | OutputMessage | OutputCall, Field(discriminator="type")]


class IncompleteDetails(TypedDict):
    reason: Literal["max_output_tokens"]


class ResponseError(TypedDict):
    code: Literal["invalid_prompt", "server_error"]
    message: str


class InputTokensDetails(TypedDict):
    """`cached_tokens` were computed for another request already."""

    cached_tokens: Count
    cache_write_tokens: Count


class OutputTokensDetails(TypedDict):
    reasoning_tokens: Count


class ResponseUsage(TypedDict):
    input_tokens: Count
    input_tokens_details: InputTokensDetails
    output_tokens: Count
    output_tokens_details: OutputTokensDetails
    total_tokens: Count


class ReasoningAsked(TypedDict):
    effort: str | None
    summary: None


class ResponseResource(TypedDict):
    """The answer, and what was asked for."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: ResponseStatus
    incomplete_details: IncompleteDetails | None
    error: ResponseError | None
    output: list[OutputItem]
    usage: ResponseUsage | None
    pipedec: NotRequired[Speculation]
    model: str
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: None
    metadata: dict[str, str]
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    presence_penalty: float
    frequency_penalty: float
    top_logprobs: Count
    tools: list[Json]
    tool_choice: str | Json
    text: Json
    reasoning: ReasoningAsked
    safety_identifier: str | None
    prompt_cache_key: str | None
    previous_response_id: None
    background: Literal[False]
    store: Literal[False]
    truncation: Literal["disabled"]
    service_tier: Literal["default"]


class Numbered(TypedDict):
    sequence_number: Count


class StatusEvent(Numbered):
    type: Literal[
        "response.created",
        "response.in_progress",
        "response.completed",
        "response.incomplete",
        "response.failed",
    ]
    response: ResponseResource


class ItemEvent(Numbered):
    type: Literal["response.output_item.added", "response.output_item.done"]
    output_index: Count
    item: OutputItem


class WithinItem(Numbered):
    item_id: str
    output_index: Count


class PartEvent(WithinItem):
    type: Literal["response.content_part.added", "response.content_part.done"]
    content_index: Count
    part: Annotated[OutputText | ReasoningText, Field(discriminator="type")]


class TextDeltaEvent(WithinItem):
    type: Literal["response.output_text.delta"]
    content_index: Count
    delta: str
    logprobs: list[ChatLogprob]


class TextDoneEvent(WithinItem):
    type: Literal["response.output_text.done"]
    content_index: Count
    text: str
    logprobs: list[ChatLogprob]


class ReasoningDeltaEvent(WithinItem):
    type: Literal["response.reasoning_text.delta"]
    content_index: Count
    delta: str


class ReasoningDoneEvent(WithinItem):
    type: Literal["response.reasoning_text.done"]
    content_index: Count
    text: str


class ArgumentsDeltaEvent(WithinItem):
    type: Literal["response.function_call_arguments.delta"]
    delta: str


class ArgumentsDoneEvent(WithinItem):
    type: Literal["response.function_call_arguments.done"]
    name: str
    arguments: str


ResponseEvent = Annotated[
    StatusEvent
    | ItemEvent
    | PartEvent
    | TextDeltaEvent
    | TextDoneEvent
    | ReasoningDeltaEvent
    | ReasoningDoneEvent
    | ArgumentsDeltaEvent
    | ArgumentsDoneEvent,
    Field(discriminator="type"),
]
