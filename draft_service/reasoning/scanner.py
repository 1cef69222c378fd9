"""An answer's text, as it comes, taken apart into reasoning and what is said."""

from __future__ import annotations

from collections.abc import Collection
from enum import Enum, auto

from draft_service.reasoning.reasoning_format import ReasoningFormat
from draft_service.text import num_undecided


class _At(Enum):
    BEGINNING = auto()  # where a tag may come
    REPETITION = auto()  # likewise, of that which the prompt had
    OPENED = auto()  # and perhaps in blanks behind the tag
    REASONING = auto()
    CLOSED = auto()  # likewise
    ANSWER = auto()


class ReasoningScanner:
    """For one answer, with reasoning that `has_begun` in the prompt or may begin it. Tags, and blanks around them,
    belong to neither part."""

    def __init__(
        self, format: ReasoningFormat, marks: Collection[int] = (), *, has_begun: bool, is_told: bool = True
    ) -> None:
        """It needs the names of the special tokens `marks` in the text, and to be told of other ones. Unless reasoning
        `is_told`, all of it is empty."""
        self._format, self.marks, self._is_told = format, marks, is_told
        self._at = _At.REPETITION if has_begun else _At.BEGINNING
        self._held = ""

    @property
    def num_held(self) -> int:
        """Characters that nothing is known of yet."""
        return len(self._held)

    @property
    def is_within(self) -> bool:
        """Whether the answer is at its reasoning."""
        return self._at in (_At.REPETITION, _At.OPENED, _At.REASONING)

    @property
    def is_between(self) -> bool:
        """Whether reasoning is over, and nothing is said yet."""
        return self._at is _At.CLOSED

    def push(self, piece: str) -> tuple[str, str]:
        """What is certain now and was not before: reasoning, and what is said."""
        self._held += piece
        reasoning = said = ""
        if self._at in (_At.BEGINNING, _At.REPETITION):
            self._begin()
        self._skip_blanks(_At.OPENED, _At.REASONING)
        if self._at is _At.REASONING:
            reasoning = self._reason()
        self._skip_blanks(_At.CLOSED, _At.ANSWER)
        if self._at is _At.ANSWER:
            said, self._held = self._held, ""
        return (reasoning if self._is_told else ""), said

    def interrupt(self) -> str:
        """There is a special token here, which is no text: reasoning does not begin before it and go on behind it. What
        waited, and is said."""
        if self._at is not _At.BEGINNING:
            return ""
        self._at, held, self._held = _At.ANSWER, self._held, ""
        return held

    def flush(self) -> tuple[str, str]:
        """What waited: the answer is over."""
        held, self._held = self._held, ""
        if self.is_within:
            return (held.rstrip() if self._is_told else ""), ""
        return "", held

    def _begin(self) -> None:
        text, opening = self._held.lstrip(), self._format.opening
        if text.startswith(opening):
            self._at, self._held = _At.OPENED, text.removeprefix(opening)
        elif not opening.startswith(text):
            self._at = _At.OPENED if self._at is _At.REPETITION else _At.ANSWER

    def _skip_blanks(self, at: _At, behind: _At) -> None:
        if self._at is at:
            self._held = self._held.lstrip()
            self._at = behind if self._held else at

    def _reason(self) -> str:
        reasoning, found, behind = self._held.partition(self._format.closing)
        if found:
            self._at, self._held = _At.CLOSED, behind
            return reasoning.rstrip()
        certain = len(self._held) - num_undecided(self._held, [self._format.closing])
        reasoning = self._held[:certain].rstrip()
        self._held = self._held[len(reasoning) :]
        return reasoning
