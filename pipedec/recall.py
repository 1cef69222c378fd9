"""A source of predictions that costs nothing: what followed when the text last looked as it does now. Pure.

Code, quotations, lists and summaries repeat what stands before them. `Recall` finds the longest recent match of the
newest tokens earlier in prompt and output, and offers what came after it (prompt lookup, Saxena 2023,
https://github.com/apoorvumang/prompt-lookup-decoding). How often that is right is learnt by the length of the match.
"""

from __future__ import annotations

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

SHORTEST, LONGEST = 2, 16  # tokens of a match: fewer are none, more count as many
SURE = 6  # tokens of a match that is worth believing beside a draft model's own word
PLACES = 8  # the newest ones with the same `SHORTEST` tokens that are looked at
AHEAD = 16  # tokens offered
TRUST = 4.0  # matches that weigh as much as the first guess, which is
FIRST_GUESS = 0.5


@dataclass(frozen=True, slots=True)
class Match:
    """`tokens` followed when the newest `length` tokens were there before; 0 and none: they never were."""

    length: int = 0
    tokens: tuple[int, ...] = ()


class Recall:
    """Finds matches in one text: the caller's own list of tokens, which only grows."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._places: defaultdict[tuple[int, ...], deque[int]] = defaultdict(lambda: deque(maxlen=PLACES))
        self._indexed = SHORTEST - 1  # the last place that is known: the one after so many tokens

    def match(self) -> Match:
        """The longest match of the newest tokens, of equal ones the newest."""
        tokens = self._tokens
        while self._indexed < len(tokens) - 1:
            self._indexed += 1
            self._places[tuple(tokens[self._indexed - SHORTEST : self._indexed])].append(self._indexed)
        best, place = 0, 0
        for candidate in reversed(self._places.get(tuple(tokens[-SHORTEST:]), ())):
            if (length := self._length(candidate)) > best:
                best, place = length, candidate
        return Match(best, tuple(tokens[place : place + AHEAD])) if best else Match()

    def _length(self, place: int) -> int:
        """How many tokens before `place` are also the newest."""
        tokens, length = self._tokens, SHORTEST
        while length < min(LONGEST, place) and tokens[place - length - 1] == tokens[-length - 1]:
            length += 1
        return length


class MatchRates:
    """How often the first token after a match of some length came again."""

    def __init__(self) -> None:
        self._seen = [0] * (LONGEST + 1)
        self._right = [0] * (LONGEST + 1)

    def observe(self, length: int, right: bool) -> None:
        """What a match of this length offered first was decided, or was not."""
        self._seen[length] += 1
        self._right[length] += right

    def logprob(self, length: int) -> float:
        """Of the token after a match of so many; each one offered and decided makes a match longer."""
        length = min(length, LONGEST)
        return math.log((self._right[length] + TRUST * FIRST_GUESS) / (self._seen[length] + TRUST))
