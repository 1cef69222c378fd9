"""The items of a conversation as clients send them, with those of earlier answers."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from draft_service.api.body import Body, Text
from draft_service.api.tool_types import CalledFunction


class ItemText(Body):
    type: Literal["input_text", "output_text"]
    text: Text


class ItemRefusal(Body):
    """Said by another server's model, as text."""

    type: Literal["refusal"]
    refusal: Text


Part = Annotated[ItemText | ItemRefusal, Field(discriminator="type")]
ItemContent = Text | Annotated[list[Part], Field(min_length=1, max_length=1024, fail_fast=True)]
ResultContent = Text | Annotated[list[Part], Field(max_length=1024, fail_fast=True)]  # of a tool that found nothing


class ItemMessage(Body):
    type: Literal["message"] = "message"
    role: Literal["system", "developer", "user", "assistant"]
    content: ItemContent


class ItemCall(CalledFunction):
    """A call that an answer of before had."""

    type: Literal["function_call"]
    call_id: Text


class ItemResult(Body):
    """Of such a call."""

    type: Literal["function_call_output"]
    call_id: Text
    output: ResultContent


class ReasoningText(Body):
    type: Literal["reasoning_text", "summary_text"]
    text: Text


Thoughts = Annotated[list[ReasoningText], Field(max_length=1024, fail_fast=True)]


class ItemReasoning(Body):
    """What was thought before the items behind it, or a summary of that. What is encrypted is ignored."""

    type: Literal["reasoning"]
    content: Thoughts | None = None
    summary: Thoughts | None = None


def _with_type(item: Any) -> Any:
    """Messages need none."""
    if not isinstance(item, dict):
        return item
    if item.get("type") == "item_reference":
        raise PydanticCustomError(
            "unsupported",
            "Nothing is stored here that could be referred to; send the item itself, as clients do that are told "
            "store: false",
        )
    return item | {"type": "message"} if item.get("type") is None else item


Item = Annotated[
    Annotated[ItemMessage | ItemCall | ItemResult | ItemReasoning, Field(discriminator="type")],
    BeforeValidator(_with_type),
]
