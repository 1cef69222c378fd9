"""Grammars that an answer must follow: which tokens may come next. llguidance is used here alone.

    grammars = Grammars(backend, vocab_size=49152)
    matcher = grammars.matcher(json_grammar({"type": "object"}), end_tokens=(2,))
    matcher.allowed()       # bool [49152]: `{` and what may follow it in one token
    matcher.consume([5809])

A grammar is llguidance's text (https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md), made of what a
client wrote by one of the functions here. It says what the answer's text is; an answer ends with an end token, which
may come wherever that text is whole.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from pipedec.logs import fields

CACHED = 64  # compiled grammars; clients send the same few again and again
# Of one answer: at worst some 50 MB of states, and 15 ms of a step. No state or grammar in errors: they go to clients.
LIMITS = LLParserLimits(max_lexer_states=25_000, verbose_errors=False)
# Models that run into a grammar they would not have followed like to fill it with blanks, without end.
JSON_OPTIONS: Any = {"whitespace_pattern": r"[ \n\r\t]{0,32}"}

NO_TEXT = ("NoExtension", "NoExtensionBias")  # what the library says of grammars that nothing satisfies

_END = "<|end of a grammar|>"

_log = logging.getLogger(__name__)

Allowed = npt.NDArray[np.bool_]


def json_grammar(schema: Mapping[str, Any]) -> str:
    """JSON that follows a JSON schema (https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md)."""
    return LLMatcher.grammar_from_json_schema(dict(schema), defaults=JSON_OPTIONS)


def regex_grammar(pattern: str) -> str:
    """Text that a regular expression matches from beginning to end, in the syntax of Rust's crate `regex`."""
    return LLMatcher.grammar_from_regex(pattern)


def choice_grammar(choices: Sequence[str]) -> str:
    """One of these texts."""
    return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choices)))


def context_free_grammar(text: str) -> str:
    """A grammar of the client's own, in llguidance's dialect of Lark or in llama.cpp's GBNF. Raises `ValueError`."""
    return grammar_from("grammar", text)


class Matcher:
    """How far one answer has come in its grammar. What it cannot follow any more, `error` explains."""

    def __init__(self, inner: LLMatcher, vocabulary: Grammars, end_tokens: Iterable[int]) -> None:
        self._inner, self._vocabulary, self._end_tokens = inner, vocabulary, frozenset(end_tokens)
        self._has_ended = False
        self.num_tokens = 0

    @property
    def error(self) -> str:
        """Why nothing can follow: the grammar is wrong or too complex, or was not followed. Empty while it is."""
        reason = self._inner.get_error().partition("<non-verbose/>")[0].strip()
        return "no text satisfies it" if reason in NO_TEXT else reason

    def copy(self) -> Matcher:
        """One that goes its own way from here."""
        other = Matcher(self._inner.deep_copy(), self._vocabulary, self._end_tokens)
        other._has_ended, other.num_tokens = self._has_ended, self.num_tokens
        return other

    def consume(self, tokens: Sequence[int]) -> None:
        """The answer goes on with these. After an end token everything may follow: nobody will read it."""
        self.num_tokens += len(tokens)
        for token in tokens:
            self._has_ended = self._has_ended or token in self._end_tokens
            if not self._has_ended:
                self._inner.consume_token(token)

    def allowed(self) -> Allowed | None:
        """Which tokens may come next, of shape [vocabulary]; none after an `error`. None once the answer has ended."""
        return None if self._has_ended else self._vocabulary.allowed(self._inner, self._end_tokens)

    def forced(self) -> list[int]:
        """Tokens that must come next, as far as there is no choice."""
        return [] if self._has_ended else self._inner.compute_ff_tokens()


class Grammars:
    """Compiles grammars for one vocabulary. May be used by several threads at once."""

    def __init__(self, backend: tokenizers.Tokenizer, vocab_size: int) -> None:
        """`vocab_size`: of the model, which may have more rows than its tokenizer has tokens, or fewer. Raises
        `ValueError` for a tokenizer that llguidance cannot read."""
        # Which tokens end an answer is the request's to say. The library, which would guess one, gets one of its own.
        own = tokenizers.Tokenizer.from_str(backend.to_str())
        own.add_special_tokens([_END])
        size = max(vocab_size, own.get_vocab_size(with_added_tokens=True))
        self._tokenizer = LLTokenizer(own.to_str(), n_vocab=size, eos_token=own.token_to_id(_END))
        self._vocab_size = vocab_size
        self._compiled = lru_cache(CACHED)(self._compile)

    @classmethod
    def of(cls, backend: tokenizers.Tokenizer, vocab_size: int) -> Grammars | None:
        """None, and a warning in the log, for a tokenizer that llguidance cannot read."""
        try:
            return cls(backend, vocab_size)
        except ValueError as error:
            _log.warning("no structured output", extra=fields(reason=f"the tokenizer cannot be used for it: {error}"))
            return None

    def matcher(self, grammar: str, end_tokens: Iterable[int]) -> Matcher:
        """At the beginning of an answer that one of `end_tokens` ends."""
        return Matcher(self._compiled(grammar).deep_copy(), self, end_tokens)

    def refusal(self, grammar: str) -> str:
        """Why no answer can follow this grammar; empty when one can. May take some tenths of a second."""
        matcher = self.matcher(grammar, ())
        matcher.allowed()
        return matcher.error

    def allowed(self, inner: LLMatcher, end_tokens: frozenset[int]) -> Allowed:
        """Which tokens may come next, the end tokens among them where the text is whole."""
        bits = np.frombuffer(inner.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=self._tokenizer.vocab_size, bitorder="little")[: self._vocab_size].view(
            bool
        )
        allowed[self._tokenizer.eos_token : self._tokenizer.eos_token + 1] = False  # a row without a text, if it is one
        if inner.is_accepting():
            allowed[list(end_tokens)] = True
        return allowed

    def _compile(self, grammar: str) -> LLMatcher:
        return LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS)
