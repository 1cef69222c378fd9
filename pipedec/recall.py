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

SHORTEST, LONGEST = 1, 16  # tokens of a match: fewer are none, more count as many
SURE = 6  # tokens of a match that is worth believing beside a draft model's own word
PLACES = 8  # the newest ones with the same `SHORTEST` tokens that are looked at
AHEAD = 16  # tokens offered
TRUST = 4.0  # matches that weigh as much as the first guess
FIRST_GUESSES = (0.5, 0.1)  # how often the best match is right, and another one


@dataclass(frozen=True, slots=True)
class Match:
    """`tokens` followed when the newest `length` tokens were there before."""

    length: int
    tokens: tuple[int, ...]


class Recall:
    """Finds matches in one text: the caller's own list of tokens, which only grows."""

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._places: defaultdict[tuple[int, ...], deque[int]] = defaultdict(lambda: deque(maxlen=PLACES))
        self._indexed = SHORTEST - 1  # the last place that is known: the one after so many tokens

    def matches(self) -> list[Match]:
        """Matches of the newest tokens that go on differently, the longest first and of equal ones the newest."""
        tokens = self._tokens
        while self._indexed < len(tokens) - 1:
            self._indexed += 1
            self._places[tuple(tokens[self._indexed - SHORTEST : self._indexed])].append(self._indexed)
        places = [(self._length(p), p) for p in self._places.get(tuple(tokens[-SHORTEST:]), ())]
        found: dict[int, Match] = {}
        for length, place in sorted(places, reverse=True):
            found.setdefault(tokens[place], Match(length, tuple(tokens[place : place + AHEAD])))
        return list(found.values())

    def _length(self, place: int) -> int:
        """How many tokens before `place` are also the newest."""
        tokens, length = self._tokens, SHORTEST
        while length < min(LONGEST, place) and tokens[place - length - 1] == tokens[-length - 1]:
            length += 1
        return length


class MatchRates:
    """How often what a match offered first was decided, by its length and whether it was the best of its time."""

    def __init__(self) -> None:
        self._seen = [[0] * (LONGEST + 1) for _ in FIRST_GUESSES]
        self._right = [[0] * (LONGEST + 1) for _ in FIRST_GUESSES]

    def observe(self, matches: Sequence[Match], token: int) -> None:
        """The target decided `token` where these were found."""
        for rank, match in enumerate(matches):
            kind = min(rank, 1)
            self._seen[kind][match.length] += 1
            self._right[kind][match.length] += match.tokens[0] == token

    def logprob(self, length: int, rank: int) -> float:
        """Of the token after a match of so many; each one offered and decided makes a match longer."""
        kind, length = min(rank, 1), min(length, LONGEST)
        right = self._right[kind][length] + TRUST * FIRST_GUESSES[kind]
        return math.log(right / (self._seen[kind][length] + TRUST))
