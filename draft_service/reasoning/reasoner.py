"""How one model reasons: what its prompts, its grammars and its answers have to do with it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from functools import partial

from draft_service.reasoning.grammar import ReasoningGrammar
from draft_service.reasoning.reasoning_format import Reasoning, ReasoningFormat, state_after
from draft_service.reasoning.scanner import ReasoningScanner
from draft_service.text import Tokenizer


class Reasoner:
    """In this `format`; None if it does not reason. Calls of tools are written with the tokens `calls`."""

    def __init__(self, tokenizer: Tokenizer, format: ReasoningFormat | None, calls: Collection[int] = ()) -> None:
        self._tokenizer, self._format = tokenizer, format
        if format is not None:
            named = tokenizer.named_tokens
            self._grammar = ReasoningGrammar(format, named, tokenizer.end_tokens, calls)
            self._marks = frozenset(token for name, token in named.items() if name in (format.opening, format.closing))

    def grammar(self, answer: str, prompt: Sequence[int], *, is_free: bool) -> str:
        """The grammar of a prompt's whole answer, given that of what is said in it."""
        return answer if self._format is None else self._grammar.before(answer, self._state(prompt), is_free=is_free)

    def scanner(self, prompt: Sequence[int], *, is_told: bool) -> Callable[[], ReasoningScanner] | None:
        """Makes one for each answer to a prompt. None if no answer has any reasoning."""
        state = self._state(prompt)
        if self._format is None or state is Reasoning.NEVER:
            return None
        return partial(
            ReasoningScanner, self._format, self._marks, has_begun=state is Reasoning.HAS_BEGUN, is_told=is_told
        )

    def _state(self, prompt: Sequence[int]) -> Reasoning:
        return Reasoning.NEVER if self._format is None else state_after(prompt, self._tokenizer, self._format)
