"""How one model calls tools: what its prompts, its grammars and its answers have to do with it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from draft_service.reasoning.reasoning_format import ReasoningFormat
from draft_service.text import USER, Tokenizer
from draft_service.tools.call_format import EXPLAINED, CallFormat
from draft_service.tools.grammar import CallGrammar, Offer
from draft_service.tools.learned import NotLearntError, learn
from draft_service.tools.prompt import Message, explained, for_template, with_systems_joined
from draft_service.tools.scanner import CallScanner
from pipedec.errors import RequestError
from pipedec.logs import fields

_log = logging.getLogger(__name__)


class ToolCalling:
    """In the format that the model's chat template has for it, or if there is none in one that its prompts explain.
    `marks` are the tokens that calls are written with."""

    def __init__(self, tokenizer: Tokenizer, reasoning: ReasoningFormat | None = None) -> None:
        self._tokenizer, self._reasoning = tokenizer, "" if reasoning is None else reasoning.opening
        self.format, self._grammar = next(self._ways())
        named = tokenizer.named_tokens.items()
        self.marks = frozenset(token for name, token in named if any(name in text for text in self.format.texts))
        system = {"role": "system", "content": "Be brief."}
        self._takes_system = self._renders([system, dict(USER)])
        self._takes_systems = self._renders([system, system, dict(USER)])

    def prompt(self, messages: Sequence[Message], offer: Offer | None, options: Mapping[str, Any]) -> list[int]:
        """The tokens of a conversation, of OpenAI's messages with plain content. Raises `RequestError`."""
        tools = () if offer is None else offer.tools
        if not self._takes_systems:
            messages = with_systems_joined(messages)
        if self.format.explained:
            told = explained(messages, tools, takes_system=self._takes_system)
            return self._tokenizer.encode_chat(told, options)
        return self._tokenizer.encode_chat(for_template(messages, self.format), options, tools)

    def grammar(self, offer: Offer) -> str:
        """That of an answer, without what is reasoned before it. Raises `RequestError`."""
        if offer.form is not None and not self.format.after_text:
            raise RequestError(
                "this model's calls cannot be told from JSON: leave out response_format or tools", "tools"
            )
        return self._grammar.of(offer)

    def scanner(self, offer: Offer) -> CallScanner:
        """For one answer."""
        names = [function.name for function in offer.functions]
        return CallScanner(self.format, names, self.marks, after_text=self.format.after_text and offer.form is None)

    def _ways(self) -> Iterator[tuple[CallFormat, CallGrammar]]:
        tokenizer = self._tokenizer
        ends = [tokenizer.token_text(token) for token in tokenizer.end_tokens]
        # An answer is no longer reasoned in once it has begun.
        never = tokenizer.end_tokens | {tokenizer.named_tokens.get(self._reasoning)}
        try:
            learnt = learn(tokenizer.render, ends, self._reasoning)
            yield learnt, CallGrammar(learnt, tokenizer.named_tokens, never)
        except (NotLearntError, ValueError) as error:
            _log.info("prompts explain how tools are called", extra=fields(reason=str(error)))
        for named in (tokenizer.named_tokens, {}):
            try:
                yield EXPLAINED, CallGrammar(EXPLAINED, named, never)
            except ValueError:  # a token is named like a part of the tag
                continue

    def _renders(self, messages: Sequence[Message]) -> bool:
        try:
            self._tokenizer.render(messages)
        except RequestError:
            return False
        return True
