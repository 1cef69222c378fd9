"""What followed the last time is offered, and trusted as far as it was right."""

from __future__ import annotations

import math
import random

import pytest

from pipedec.recall import AHEAD, LONGEST, Match, MatchRates, Recall


def test_a_new_text_recalls_nothing() -> None:
    assert Recall([]).match() == Match()
    assert Recall([1]).match() == Match()
    assert Recall([1, 2, 3, 4]).match() == Match()
    assert Recall([1, 2, 3, 2]).match() == Match()  # one token is no match


def test_what_followed_is_offered() -> None:
    assert Recall([1, 2, 3, 4, 5, 1, 2]).match() == Match(2, (3, 4, 5, 1, 2))
    assert Recall([7, 7, 7]).match() == Match(2, (7,))  # a match may overlap what it matches


def test_the_longest_match_wins_and_of_equal_ones_the_newest() -> None:
    assert Recall([9, 1, 2, 3, 1, 2, 4, 9, 1, 2]).match() == Match(3, (3, 1, 2, 4, 9, 1, 2))
    assert Recall([8, 1, 2, 3, 7, 1, 2, 4, 9, 1, 2]).match() == Match(2, (4, 9, 1, 2))


def test_it_goes_on_with_a_text_that_grows() -> None:
    """As found anew each time, by looking at all places."""
    rng, tokens = random.Random(3), list[int]()
    recall = Recall(tokens)
    for _ in range(400):
        tokens.append(rng.randrange(3))
        expected = max((_common(tokens, place), place) for place in range(len(tokens)))
        match = recall.match()
        if expected[0] < 2:
            assert match == Match()
            continue
        assert match.length <= min(expected[0], LONGEST)
        shown = [p for p in range(len(tokens)) if tuple(tokens[p : p + AHEAD]) == match.tokens]
        assert any(min(_common(tokens, place), LONGEST) == match.length for place in shown)


def _common(tokens: list[int], place: int) -> int:
    length = 0
    while length < place and tokens[place - 1 - length] == tokens[-1 - length]:
        length += 1
    return length


def test_rates_are_learnt_by_length() -> None:
    rates = MatchRates()
    assert math.exp(rates.logprob(2)) == pytest.approx(0.5)
    for index in range(1000):
        rates.observe(2, index % 4 == 0)
        rates.observe(LONGEST, True)
    assert math.exp(rates.logprob(2)) == pytest.approx(0.25, abs=0.01)
    assert math.exp(rates.logprob(LONGEST + 5)) == pytest.approx(1.0, abs=0.01)
