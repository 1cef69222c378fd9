"""Request bodies: OpenAI's fields, and the additions of vLLM that clients use.

Validation is strict (`"5"` is not 5); null means absent. Unknown fields are ignored. A known field that would ask for
something we do not do is declared with its harmless values only, so it is refused, not ignored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from draft_service.api.body import Body, Only, Text, encodable, few
from draft_service.api.structure import ResponseFormat, StructuredOutputs
from draft_service.api.tool_types import MAX_TOOLS, ToolCall, ToolChoice, Tools
from pipedec.sampling_params import MIN_REPETITION_PENALTY

MAX_SEQUENCES = 128  # prompts x choices of one HTTP request
MAX_BIASES = 1024

Probability = Annotated[float, Field(ge=0, le=1)]
TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]
LogitBias = dict[Annotated[str, Field(pattern=r"^[0-9]{1,9}$")], Annotated[float, Field(ge=-100, le=100)]]
TemplateOptions = Annotated[dict[str, Any], AfterValidator(encodable)]

# Lists stop at the first item that is wrong: a body has room for a million, and each would be described.
Prompts = Annotated[list[Text], Field(min_length=1, max_length=MAX_SEQUENCES, fail_fast=True)]
TokenIdPrompts = Annotated[list[TokenIds], Field(min_length=1, max_length=MAX_SEQUENCES, fail_fast=True)]


class StreamOptions(Body):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class SamplingBody(Body):
    """What all generation routes take."""

    model: str
    stream: bool | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16, fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64, fail_fast=True)] | None = None
    ignore_eos: bool | None = None

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: Probability | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Probability | None = None
    repetition_penalty: Annotated[float, Field(ge=MIN_REPETITION_PENALTY, le=100)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[LogitBias, few(MAX_BIASES), Field(max_length=MAX_BIASES)] | None = None
    seed: int | None = None  # any: modulo 2**63

    echo: Annotated[Any, Only(False)] = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Annotated[Any, Only()] = None
    guided_regex: Annotated[Any, Only()] = None
    guided_choice: Annotated[Any, Only()] = None
    guided_grammar: Annotated[Any, Only()] = None
    json_schema: Annotated[Any, Only()] = None  # from here SGLang's
    regex: Annotated[Any, Only()] = None
    ebnf: Annotated[Any, Only()] = None
    structural_tag: Annotated[Any, Only()] = None
    grammar: Annotated[Any, Only()] = None
    logits_processors: Annotated[Any, Only([])] = None
    typical_p: Annotated[Any, Only(1, 1.0)] = None
    return_token_ids: Annotated[Any, Only(False)] = None
    return_tokens_as_token_ids: Annotated[Any, Only(False)] = None
    allowed_token_ids: Annotated[Any, Only()] = None
    bad_words: Annotated[Any, Only([])] = None
    prompt_logprobs: Annotated[Any, Only()] = None
    truncate_prompt_tokens: Annotated[Any, Only()] = None
    use_beam_search: Annotated[Any, Only(False)] = None
    include_stop_str_in_output: Annotated[Any, Only(False)] = None
    skip_special_tokens: Annotated[Any, Only(True)] = None


class GenerationBody(SamplingBody):
    """What chats and completions take."""

    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    response_format: ResponseFormat | None = None
    store: Annotated[Any, Only(False)] = None


class CompletionBody(GenerationBody):
    """`POST /v1/completions`. The prompt is text or token ids, or a list of such prompts."""

    prompt: Text | Prompts | TokenIds | TokenIdPrompts
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    best_of: Annotated[int, Field(ge=1, le=MAX_SEQUENCES)] | None = None  # no more than `n`
    suffix: Annotated[Any, Only("")] = None
    prompt_embeds: Annotated[Any, Only()] = None
    add_special_tokens: Annotated[Any, Only(True)] = None


class TextPart(Body):
    type: Literal["text"]
    text: Text


Content = Text | Annotated[list[TextPart], Field(min_length=1, max_length=1024, fail_fast=True)]
ResultContent = Text | Annotated[list[TextPart], Field(max_length=1024, fail_fast=True)]  # of a tool that found nothing


class Message(Body):
    """What every message may have."""

    name: Text | None = None
    function_call: Annotated[Any, Only()] = None
    audio: Annotated[Any, Only()] = None


class Instruction(Message):
    """Said to the assistant."""

    role: Literal["system", "developer", "user"]
    content: Content
    tool_calls: Annotated[Any, Only([])] = None


class Answer(Message):
    """Said by the assistant: content, calls, or both."""

    role: Literal["assistant"]
    content: Content | None = None
    reasoning_content: Text | None = None
    reasoning: Text | None = None  # the same, by a newer name
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None


class Result(Message):
    """Of a call that an answer had."""

    role: Literal["tool"]
    content: ResultContent
    tool_call_id: Text


AnyMessage = Annotated[Instruction | Answer | Result, Field(discriminator="role")]


class ChatBody(GenerationBody):
    """`POST /v1/chat/completions`."""

    messages: Annotated[list[AnyMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    chat_template_kwargs: TemplateOptions | None = None
    reasoning_effort: Text | None = None  # a variable of the chat template
    include_reasoning: bool | None = None  # in the answer
    separate_reasoning: bool | None = None  # or leave it in the text

    tools: Tools | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Annotated[Any, Only([])] = None
    function_call: Annotated[Any, Only("none", "auto")] = None
    modalities: Annotated[Any, Only(["text"])] = None
    audio: Annotated[Any, Only()] = None
    web_search_options: Annotated[Any, Only()] = None
    chat_template: Annotated[Any, Only()] = None
    continue_final_message: Annotated[Any, Only(False)] = None
    add_generation_prompt: Annotated[Any, Only(True)] = None
    add_special_tokens: Annotated[Any, Only(False)] = None
    documents: Annotated[Any, Only([])] = None
