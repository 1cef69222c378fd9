"""The body of `POST /v1/responses`, by the rules of all request bodies."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from draft_service.api.body import Body, Only, Text, few
from draft_service.api.openai_types import SamplingBody, TemplateOptions
from draft_service.api.responses.items import Item
from draft_service.api.structure import AnyText, JsonObject, NamedSchema
from draft_service.api.tool_types import MAX_TOOLS, FunctionBody, Name

LOGPROBS = "message.output_text.logprobs"
MAX_METADATA = 16
_WHOLE = "nothing is stored here: send all of the conversation as input"

Includable = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",  # from here there is never any
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "web_search_call.action.sources",
    "web_search_call.results",
]
Metadata = dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]]


def _function(type: Any) -> Any:
    if type != "function":
        remedy = "Input should be 'function': there are no other tools here; offer functions that your program runs"
        raise PydanticCustomError("unsupported", remedy)
    return type


class FlatFunction(FunctionBody):
    type: Annotated[Literal["function"], BeforeValidator(_function)]


class ChosenFunction(Body):
    type: Literal["function"]
    name: Name


class FunctionsAllowed(Body):
    """Some of `tools`."""

    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenFunction], Field(min_length=1, max_length=MAX_TOOLS, fail_fast=True)]


FunctionChoice = (
    Literal["none", "auto", "required"] | Annotated[ChosenFunction | FunctionsAllowed, Field(discriminator="type")]
)


class FlatSchema(NamedSchema):
    type: Literal["json_schema"]


class TextOptions(Body):
    format: Annotated[AnyText | JsonObject | FlatSchema, Field(discriminator="type")] | None = None


class ReasoningOptions(Body):
    effort: Text | None = None  # a variable of the chat template


class ResponsesBody(SamplingBody):
    """`POST /v1/responses`."""

    input: Text | Annotated[list[Item], Field(min_length=1, max_length=4096, fail_fast=True)]
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    tools: Annotated[list[FlatFunction], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    include: Annotated[list[Includable], Field(max_length=64, fail_fast=True)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    metadata: Annotated[Metadata, few(MAX_METADATA), Field(max_length=MAX_METADATA)] | None = None
    store: bool | None = None  # clients' default is true; it is not done, and the reply says so
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None

    truncation: Annotated[Any, Only("disabled")] = None
    background: Annotated[Any, Only(False)] = None
    previous_response_id: Annotated[Any, Only(remedy=_WHOLE)] = None
    conversation: Annotated[Any, Only(remedy=_WHOLE)] = None
    prompt: Annotated[Any, Only(remedy="no templates are stored here: send the prompt as instructions and input")] = (
        None
    )
    n: Annotated[Any, Only(1)] = None
    max_tokens: Annotated[Any, Only(remedy="here its name is max_output_tokens")] = None  # from here a chat's
    max_completion_tokens: Annotated[Any, Only(remedy="here its name is max_output_tokens")] = None
    messages: Annotated[Any, Only(remedy="here its name is input")] = None
    response_format: Annotated[Any, Only(remedy="here its name is text.format")] = None
    reasoning_effort: Annotated[Any, Only(remedy="here its name is reasoning.effort")] = None
    logprobs: Annotated[Any, Only(False, remedy=f"have {LOGPROBS} in include")] = None
