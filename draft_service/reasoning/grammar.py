"""The grammar of answers that have a form, or may call tools, behind reasoning that is free."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from draft_service.reasoning.reasoning_format import Reasoning, ReasoningFormat
from pipedec.model.grammar import behind, one_of, quoted

_RULES = r"""
ANY: /(?s:.*)/
SOME: /(?s:.+)/ & ~(ANY CLOSING ANY)
BLANKS: /\s{1,8}/
"""
_BEGUN = r"""
begun[lazy]: BEGUN
BEGUN: /\s{0,8}/"""


class ReasoningGrammar:
    """For models whose `named` tokens are no text to grammars, and of which `end_tokens` end an answer. Tokens that are
    `marks` of calls are not in reasoning: what a model calls before that is over would be lost."""

    def __init__(
        self,
        format: ReasoningFormat,
        named: Mapping[str, int],
        end_tokens: Collection[int],
        marks: Collection[int] = (),
    ) -> None:
        self._format = format
        self._opening, self._closing = (named.get(tag) for tag in (format.opening, format.closing))
        excluded = {*end_tokens, *marks, self._closing}
        self._others = one_of(sorted(token for token in named.values() if token not in excluded))

    def before(self, grammar: str, state: Reasoning, *, is_free: bool) -> str:
        """The grammar with reasoning in front, where there may be some. If the answer `is_free` it may end within its
        reasoning."""
        if state is Reasoning.NEVER:
            return grammar
        start = (self._by_text if self._closing is None else self._by_token)(state, is_free=is_free)
        rules = f"{_RULES}CLOSING: {quoted(self._format.closing)}\nother: {self._others}"
        return behind(start + rules, grammar)

    def _by_token(self, state: Reasoning, *, is_free: bool) -> str:
        inner, behind = "(SOME? other)* SOME?", f"<[{self._closing}]> BLANKS? @answer"
        reasoned = f"{inner} ({behind})?" if is_free else f"{inner} {behind}"
        if state is Reasoning.HAS_BEGUN:
            return f"start: {reasoned}"
        begun = quoted(self._format.opening) if self._opening is None else f"<[{self._opening}]>"
        return f"start: BLANKS? {begun} {reasoned} | @answer"

    def _by_text(self, state: Reasoning, *, is_free: bool) -> str:
        """Up to the tags' ends, and so lazy: nothing else that the answer may be goes on behind them."""
        behind = "reasoned BLANKS? @answer"
        reasoned = f"({behind} | SOME?)" if is_free else behind
        rules = "reasoned[lazy]: REASONED\nREASONED: ANY CLOSING"
        if state is Reasoning.HAS_BEGUN:
            return f"start: {reasoned}\n{rules}"
        rules += f"{_BEGUN} {quoted(self._format.opening)}"
        return f"start: begun {reasoned} | @answer\n{rules}"
