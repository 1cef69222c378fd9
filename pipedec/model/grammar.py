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
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import tokenizers
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, grammar_from

from pipedec.logs import fields

# Of one answer. No state or grammar in errors: they go to clients.
LIMITS = LLParserLimits(max_lexer_states=50_000, max_items_in_row=1100, step_max_items=20_000, verbose_errors=False)
# Models that run into a grammar they would not have followed like to fill it with blanks, without end.
JSON_OPTIONS: Any = {"whitespace_pattern": r"[ \n\r\t]{0,32}"}
LENIENT_OPTIONS: Any = {"lenient": True, "coerce_one_of": True}
NO_TEXT = ("NoExtension", "NoExtensionBias")  # what the library says of grammars that nothing satisfies
LONGEST_ERROR = 400  # characters: some quote the grammar, and messages have limits

_log = logging.getLogger(__name__)

Allowed = npt.NDArray[np.bool_]
Dialect = Literal["llguidance", "lark or gbnf"]


def json_grammar(schema: Mapping[str, Any], *, lenient: bool = False) -> str:
    """JSON that follows a JSON schema (https://github.com/guidance-ai/llguidance/blob/main/docs/json_schema.md). What
    of it the library does not know makes the grammar wrong, or if `lenient` is left out. Raises `ValueError` for
    numbers of more than 64 bits."""
    options = JSON_OPTIONS | (LENIENT_OPTIONS if lenient else {})
    return LLMatcher.grammar_from_json_schema(dict(schema), defaults=options)


def inline_json(schema: Mapping[str, Any], *, lenient: bool = False) -> str:
    """The same as a part of a rule of a grammar."""
    options = JSON_OPTIONS | (LENIENT_OPTIONS if lenient else {})
    return "%json " + json.dumps({**schema, "x-guidance": options}, ensure_ascii=False, separators=(",", ":"))


def regex_grammar(pattern: str) -> str:
    """Text that a regular expression matches from beginning to end, in the syntax of Rust's crate `regex`."""
    return LLMatcher.grammar_from_regex(pattern)


def choice_grammar(choices: Sequence[str]) -> str:
    """One of these texts."""
    return LLMatcher.grammar_from_lark("start: " + " | ".join(map(json.dumps, choices)))


def context_free_grammar(text: str) -> str:
    """A grammar of the client's own, in llguidance's dialect of Lark or in llama.cpp's GBNF. Raises `ValueError`. Takes
    time that rises with the square of the text's length."""
    return grammar_from("grammar", text)


def behind(lead: str, answer: str) -> str:
    """A grammar in Lark, `lead`, which calls another `@answer`."""
    whole = json.loads(answer)["grammars"] if answer.startswith("{") else [{"lark_grammar": answer}]
    whole = [{"lark_grammar": lead}, whole[0] | {"name": "answer"}, *whole[1:]]
    return json.dumps({"grammars": whole}, ensure_ascii=False, separators=(",", ":"))


def one_of(tokens: Iterable[int]) -> str:
    """In a rule: one of these tokens, given in ascending order."""
    ranges = list[list[int]]()
    for token in tokens:
        if ranges and ranges[-1][1] == token - 1:
            ranges[-1][1] = token
        else:
            ranges.append([token, token])
    numbers = ",".join(f"{first}-{last}" if first < last else str(first) for first, last in ranges)
    return f"<[{numbers}]>" if numbers else r"/[^\s\S]/"  # which nothing is


def quoted(text: str) -> str:
    """In a rule: this text."""
    return json.dumps(text, ensure_ascii=False)


class Matcher:
    """How far one answer has come in its grammar. Not to be used by two threads at once, but copies may be."""

    def __init__(self, inner: LLMatcher, vocabulary: Grammars, end_tokens: Iterable[int]) -> None:
        self._inner, self._vocabulary, self._end_tokens = inner, vocabulary, frozenset(end_tokens)
        self._has_ended = False
        self.num_tokens = 0

    @property
    def error(self) -> str:
        """Why nothing can follow: the grammar is wrong or too complex, or was not followed. Empty while it is."""
        said: str = self._inner.get_error()
        for noise in ("<non-verbose/>", "<backtrace>", "stack backtrace"):
            said = said.partition(noise)[0]
        reason = said.strip()
        return "no text satisfies it" if reason in NO_TEXT else reason[:LONGEST_ERROR]

    def copy(self) -> Matcher:
        """One that goes on by itself from here. What the library learns of the grammar, and the limit of that, both
        share."""
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

    def refusal(self) -> str:
        """Why nothing can follow, not even the end; empty when something can. Takes as long as the grammar likes."""
        allowed = self.allowed()
        nothing = allowed is not None and not allowed.any() and not self._inner.is_accepting()
        return self.error or ("no token of the model can begin it" if nothing else "")

    def forced(self) -> list[int]:
        """Tokens that must come next, as far as there is no choice."""
        return [] if self._has_ended else self._vocabulary.forced(self._inner)


class Grammars:
    """Compiles grammars for one vocabulary, each answer's for itself: what a compiled grammar has learnt counts against
    its limits, and no answer may depend on others. May be used by several threads at once."""

    def __init__(self, backend: tokenizers.Tokenizer, vocab_size: int) -> None:
        """`vocab_size`: of the model, which may have more rows than its tokenizer has tokens, or fewer. Raises
        `ValueError` for a tokenizer that llguidance cannot read."""
        self._vocab_size = vocab_size
        used = set(backend.get_vocab(with_added_tokens=True).values())
        # Which tokens end an answer is the request's to say. The library wants one, and gets one that no model has.
        end = max(vocab_size, max(used, default=-1) + 1)
        unused = [token for token in range(end + 1) if token not in used]
        serialised = _for_text(json.loads(backend.to_str()), named_tokens(backend), unused)
        self._tokenizer = LLTokenizer(json.dumps(serialised), n_vocab=end + 1, eos_token=end)

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
        return Matcher(LLMatcher(self._tokenizer, grammar, log_level=0, limits=LIMITS), self, end_tokens)

    def lengths(self) -> npt.NDArray[np.int64]:
        """Of each token's text, in bytes."""
        return np.array([len(self._tokenizer.decode_bytes([token])) for token in range(self._vocab_size)])

    def allowed(self, inner: LLMatcher, end_tokens: frozenset[int]) -> Allowed:
        """Which tokens may come next, the end tokens among them where the text is whole."""
        bits = np.frombuffer(inner.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)
        if inner.is_accepting():
            allowed[list(end_tokens)] = True
        return allowed

    def forced(self, inner: LLMatcher) -> list[int]:
        """Tokens of the model that must come next."""
        tokens = inner.compute_ff_tokens()
        return tokens[: (*(token < self._vocab_size for token in tokens), False).index(False)]


def named_tokens(backend: tokenizers.Tokenizer) -> dict[str, int]:
    """The tokens that a grammar knows by number alone, `<[17]>`, and never takes for text; with their names."""
    # The library takes all in angle brackets for special, such as the `<tool_call>` that a template has models write.
    bracketed = re.compile("<.*>", re.DOTALL)
    added = backend.get_added_tokens_decoder().items()
    return {each.content: token for token, each in added if each.special or bracketed.fullmatch(each.content)}


def _for_text(tokenizer: dict[str, Any], named: Iterable[str], unused: Iterable[int]) -> dict[str, Any]:
    """A serialised tokenizer for text alone. Those tokens get names that no text has, else text that a grammar demands
    would be tokenised as them, and so have `unused` ids. Words have no space of their own in front."""
    names = {content: f"<{secrets.token_hex(8)} {number}>" for number, content in enumerate(named)}
    added = tokenizer["added_tokens"]
    for each in added:
        each["content"] = names.get(each["content"], each["content"])
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    added += [
        {"id": token, "content": f"<{secrets.token_hex(8)} {token}>", "special": True} | flags for token in unused
    ]
    model = tokenizer["model"]
    match model.get("vocab"):
        case dict() as pieces:
            model["vocab"] = {names.get(piece, piece): token for piece, token in pieces.items()}
        case list() as scored:
            model["vocab"] = [[names.get(piece, piece), score] for piece, score in scored]
    if (unknown := model.get("unk_token")) is not None:
        model["unk_token"] = names.get(unknown, unknown)
    tokenizer["post_processor"] = None  # it names special tokens to put around a text
    byte_level = [each for each in _parts(tokenizer["pre_tokenizer"]) if each["type"] == "ByteLevel"]
    for each in byte_level:
        each["add_prefix_space"] = False
    if byte_level:
        tokenizer["normalizer"] = None  # the text that a grammar demands is wanted as it stands
    return tokenizer


def _parts(pre_tokenizer: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if pre_tokenizer is not None:
        yield pre_tokenizer
        for each in pre_tokenizer.get("pretokenizers", ()):
            yield from _parts(each)
