"""From a valid request body to the sequences that the engine is asked for: tokens, defaults, limits."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

from draft_service.api.forms import Forms
from draft_service.api.openai_types import (
    MAX_SEQUENCES,
    Answer,
    AnyMessage,
    ChatBody,
    CompletionBody,
    GenerationBody,
    Result,
)
from draft_service.api.tool_types import offer_of
from draft_service.generation import EngineInfo, GenerationRequest
from draft_service.grammar_trial import GrammarTrial
from draft_service.reasoning.reasoner import Reasoner
from draft_service.reasoning.reasoning_format import FIELDS, find_format
from draft_service.reasoning.scanner import ReasoningScanner
from draft_service.text import Tokenizer
from draft_service.tools.calling import ToolCalling
from draft_service.tools.grammar import Offer
from draft_service.tools.scanner import CallScanner
from pipedec.errors import RequestError
from pipedec.sampling_params import SamplingParams
from pipedec.words import counted

INLINE_CHARACTERS = 8192  # longer prompts, or with tools, get a thread: the event loop has streams to serve
COMPLETION_TOKENS = 16  # OpenAI's default for completions; a chat's is the rest of the context
SAMPLING_FIELDS = (
    *("temperature", "top_p", "min_p", "min_tokens"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)


@dataclass(frozen=True, slots=True)
class Admission:
    """The sequences of one HTTP request: `n` for each of its prompts, in order. `stops` are the stop strings of all.
    Whether their text `continues` that of their prompts, or begins anew. What of them is a call is the `scanner`'s to
    say, and what is reasoning another's, if any is."""

    sequences: tuple[GenerationRequest, ...]
    stops: tuple[str, ...]
    num_prompt_tokens: int  # each prompt counted once
    continues: bool
    scanner: Callable[[], CallScanner] | None = None
    reasoning: Callable[[], ReasoningScanner] | None = None


class Admitter:
    """Admits requests for one model. Its methods raise `RequestError` for what cannot be served: also for more than
    `max_sequences`, since an engine that never holds so many would say for ever that it is busy. Without a `trial` of
    grammars no answer can have a given form."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        info: EngineInfo,
        max_sequences: int = MAX_SEQUENCES,
        trial: GrammarTrial | None = None,
    ) -> None:
        reasoning = find_format(tokenizer)
        self._tokenizer, self._info, self._calling = tokenizer, info, ToolCalling(tokenizer, reasoning)
        self._reasoner = Reasoner(tokenizer, reasoning, self._calling.marks)
        self._forms = Forms(self._calling, self._reasoner, trial)
        self._max_sequences = min(max_sequences, MAX_SEQUENCES)
        # A tokenizer may name tokens that the model has no row for, and so can never say.
        self._end_tokens = frozenset(token for token in tokenizer.end_tokens if token < info.vocab_size)

    async def completion(self, body: CompletionBody) -> Admission:
        if body.best_of not in (None, body.n or 1):
            raise RequestError("best_of must be equal to n: choices are not ranked here", "best_of")
        single = isinstance(body.prompt, str) or isinstance(body.prompt[0], int)
        prompts = cast("list[str | list[int]]", [body.prompt] if single else body.prompt)

        def encode() -> list[list[int]]:
            return [self._tokenizer.encode(prompt) if isinstance(prompt, str) else prompt for prompt in prompts]

        tokens = await _off_loop_if_long(encode, sum(len(prompt) for prompt in prompts if isinstance(prompt, str)))
        max_tokens = self._max_tokens("prompt", tokens, body.max_tokens, COMPLETION_TOKENS)
        return await self._admit(body, tokens, max_tokens, body.logprobs, continues=True)

    async def chat(self, body: ChatBody) -> Admission:
        if body.top_logprobs and not body.logprobs:
            raise RequestError("top_logprobs needs logprobs to be true", "top_logprobs")
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        offer = offer_of(body.tools, body.tool_choice, body.parallel_tool_calls)
        messages = [_plain(index, message) for index, message in enumerate(body.messages)]
        options = _effort(body.reasoning_effort) | (body.chat_template_kwargs or {})

        def encode() -> list[list[int]]:
            return [self._calling.prompt(messages, offer, options)]

        size = sum(map(_size, messages))
        tokens = await _off_loop_if_long(encode, size if offer is None else size + INLINE_CHARACTERS)
        asked = body.max_completion_tokens or body.max_tokens
        max_tokens = self._max_tokens("messages", tokens, asked, self._info.context)
        reasoning = self._reasoner.scanner(tokens[0], is_told=body.include_reasoning is not False)
        if reasoning is not None and body.separate_reasoning is False:
            if offer is not None:
                raise RequestError("calls are looked for behind what is reasoned; leave it out", "separate_reasoning")
            reasoning = None
        admission = await self._admit(body, tokens, max_tokens, logprobs, continues=False, offer=offer)
        return replace(admission, reasoning=reasoning)

    def _max_tokens(
        self, param: str, prompts: Sequence[Sequence[int]], asked: int | None, default: int
    ) -> tuple[int, ...]:
        """How many tokens each prompt, given in the field `param`, may have for its answer."""
        context = self._info.context
        for prompt in prompts:
            if not prompt:
                raise RequestError("the prompt is empty", param)
            self._check_vocabulary(param, prompt)
            if len(prompt) + (asked or 1) > context:
                # The beginning is OpenAI's, by which clients know that they have to shorten the conversation.
                raise RequestError(
                    f"this model's maximum context length is {context} tokens: the prompt has {len(prompt)} and "
                    f"{asked or 'at least 1'} would be generated",
                    param,
                    code="context_length_exceeded",
                )
        return tuple(asked or min(default, context - len(prompt)) for prompt in prompts)

    async def _admit(
        self,
        body: GenerationBody,
        prompts: Sequence[Sequence[int]],
        max_tokens: Sequence[int],
        logprobs: int | None,
        *,
        continues: bool,
        offer: Offer | None = None,
    ) -> Admission:
        n = body.n or 1
        if n * len(prompts) > self._max_sequences:
            raise RequestError(
                f"{counted(len(prompts), 'prompt')} with {counted(n, 'choice')}: more than "
                f"{counted(self._max_sequences, 'sequence')}; ask in parts",
                "n" if n > 1 else "prompt",
            )
        if (body.min_tokens or 0) > min(max_tokens):
            raise RequestError(f"min_tokens must not be above max_tokens, {min(max_tokens)}", "min_tokens")
        end_tokens = frozenset(body.stop_token_ids or ()) | (frozenset() if body.ignore_eos else self._end_tokens)
        self._check_vocabulary("stop_token_ids", body.stop_token_ids or ())
        asked = await self._forms.asked(body, offer, None if continues else prompts[0], can_end=bool(self._end_tokens))
        sampling = self._sampling(body, end_tokens, logprobs, asked.grammar)
        return Admission(
            tuple(
                GenerationRequest(tuple(prompt), limit, replace(sampling, seed=_seed(body.seed, choice)), end_tokens)
                for prompt, limit in zip(prompts, max_tokens, strict=True)
                for choice in range(n)
            ),
            (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
            sum(map(len, prompts)),
            continues,
            None if asked.offer is None else partial(self._calling.scanner, asked.offer),
        )

    def _sampling(
        self, body: GenerationBody, end_tokens: frozenset[int], logprobs: int | None, grammar: str
    ) -> SamplingParams:
        """The sampling of all sequences, but for their seeds. OpenAI's default of the temperature is 1."""
        biases = {int(token): bias for token, bias in (body.logit_bias or {}).items()}
        self._check_vocabulary("logit_bias", tuple(biases))
        given = {name: value for name in SAMPLING_FIELDS if (value := getattr(body, name)) is not None}
        return SamplingParams(
            **({"temperature": 1.0} | given),
            top_k=max(body.top_k or 0, 0),  # vLLM's -1: off
            logit_bias=tuple(biases.items()),
            end_tokens=tuple(sorted(end_tokens)),
            logprobs=logprobs,
            grammar=grammar,
        )

    def _check_vocabulary(self, param: str, tokens: Sequence[int]) -> None:
        if tokens and max(tokens) >= self._info.vocab_size:
            raise RequestError(f"{max(tokens)} is not a token: the model has {self._info.vocab_size}", param)


def _size(message: dict[str, Any]) -> int:
    """Characters."""
    calls = message.get("tool_calls", ())
    said = len(message["content"] or "") + len(message.get(FIELDS[0], ""))
    return said + sum(len(call["function"]["arguments"]) for call in calls)


def _seed(given: int | None, choice: int) -> int:
    """That of a prompt's choice: without a given one, nobody knows it, and no other sequence has it."""
    return secrets.randbits(63) if given is None else (given + choice) % 2**63


async def _off_loop_if_long(encode: Callable[[], list[list[int]]], num_characters: int) -> list[list[int]]:
    return encode() if num_characters <= INLINE_CHARACTERS else await asyncio.to_thread(encode)


def _effort(asked: str | None) -> dict[str, Any]:
    """How much to reason, as chat templates read it: most know only whether at all."""
    if asked is None:
        return {}
    without = {"enable_thinking": False, "thinking": False} if asked == "none" else {}
    return {"reasoning_effort": asked} | without


def _plain(index: int, message: AnyMessage) -> dict[str, Any]:
    """A message as chat templates read it: `developer` is OpenAI's newer name of `system`, and parts are lines."""
    content = message.content
    plain: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": "\n".join(part.text for part in content) if isinstance(content, list) else content,
    }
    if message.name is not None:
        plain["name"] = message.name
    if isinstance(message, Answer) and (reasoning := message.reasoning_content or message.reasoning):
        plain |= dict.fromkeys(FIELDS, reasoning)
    match message:
        case Result():
            plain["tool_call_id"] = message.tool_call_id
        case Answer(tool_calls=[_, *_] as calls):
            plain["tool_calls"] = [call.model_dump() for call in calls]
        case Answer(content=None):
            raise RequestError("an answer has content, tool_calls, or both", f"messages.{index}.content")
    return plain
