"""How one model calls tools: what its prompts, its grammars and its answers have to do with it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from draft_service.text import Tokenizer
from draft_service.tools.call_format import EXPLAINED, CallFormat
from draft_service.tools.grammar import CallGrammar, Function
from draft_service.tools.learned import USER, NotLearntError, learn
from draft_service.tools.prompt import Message, explained, for_template
from draft_service.tools.scanner import CallScanner
from pipedec.errors import RequestError
from pipedec.logs import fields

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """What an answer may call, `several` times or once; nothing is said else if it is `required`. The prompt tells of
    all `tools`, as templates read them, though one alone may be asked for."""

    tools: tuple[Message, ...]
    functions: tuple[Function, ...]
    required: bool
    several: bool


class ToolCalling:
    """In the format that the model's chat template has for it, or if there is none in one that its prompts explain."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        try:
            self._form = learn(tokenizer.render, [tokenizer.token_text(token) for token in tokenizer.end_tokens])
            self._grammar = CallGrammar(self._form, tokenizer.named_tokens, tokenizer.end_tokens)
        except (NotLearntError, ValueError) as error:
            _log.info("prompts explain how tools are called", extra=fields(reason=f"the chat template: {error}"))
            self._form = EXPLAINED
            self._grammar = CallGrammar(EXPLAINED, tokenizer.named_tokens, tokenizer.end_tokens)
        texts = (self._form.opening, self._form.between, self._form.following or "", self._form.closing)
        named = tokenizer.named_tokens.items()
        self._marks = frozenset(token for name, token in named if any(name in text for text in texts))
        self._takes_system = self._renders([{"role": "system", "content": "Be brief."}, dict(USER)])

    @property
    def form(self) -> CallFormat:
        """How calls are written."""
        return self._form

    def prompt(self, messages: Sequence[Message], offer: Offer | None, options: Mapping[str, Any]) -> list[int]:
        """The tokens of a conversation, of OpenAI's messages with plain content. Raises `RequestError`."""
        tools = () if offer is None else offer.tools
        if self._form.explained:
            told = explained(messages, tools, takes_system=self._takes_system)
            return self._tokenizer.encode_chat(told, options)
        return self._tokenizer.encode_chat(for_template(messages, self._form), options, tools)

    def grammar(self, offer: Offer, prompt: Sequence[int]) -> str:
        """That of the answer to a prompt."""
        thinking = self._grammar.thinking(prompt)
        return self._grammar.of(offer.functions, thinking, required=offer.required, several=offer.several)

    def scanner(self, offer: Offer) -> CallScanner:
        """For one answer."""
        return CallScanner(self._form, [function.name for function in offer.functions], self._marks)

    def _renders(self, messages: Sequence[Message]) -> bool:
        try:
            self._tokenizer.render(messages)
        except RequestError:
            return False
        return True
