"""What followed the last time is offered, and trusted as far as it was right."""

from __future__ import annotations

import math
import random

import pytest

from pipedec.recall import AHEAD, LONGEST, PLACES, Match, MatchRates, Recall


def test_a_new_text_recalls_nothing() -> None:
    assert Recall([]).matches() == []
    assert Recall([1]).matches() == []
    assert Recall([1, 2, 3, 4]).matches() == []


def test_what_followed_is_offered() -> None:
    assert Recall([1, 2, 3, 4, 5, 1, 2]).matches() == [Match(2, (3, 4, 5, 1, 2))]
    assert Recall([7, 7, 7]).matches() == [Match(2, (7,))]  # a match may overlap what it matches


def test_the_longest_match_comes_first_and_of_equal_ones_the_newest() -> None:
    assert Recall([9, 1, 2, 3, 1, 2, 4, 9, 1, 2]).matches() == [
        Match(3, (3, 1, 2, 4, 9, 1, 2)),
        Match(2, (4, 9, 1, 2)),
    ]
    assert [m.tokens[0] for m in Recall([8, 1, 2, 3, 7, 1, 2, 4, 9, 1, 2]).matches()] == [4, 3]


def test_what_goes_on_in_the_same_way_is_offered_once() -> None:
    assert [m.tokens[0] for m in Recall([1, 5, 9, 1, 5, 8, 1]).matches()] == [5]


def test_it_goes_on_with_a_text_that_grows() -> None:
    """As found anew each time, by looking at all places."""
    rng, tokens = random.Random(3), list[int]()
    recall = Recall(tokens)
    for _ in range(400):
        tokens.append(rng.randrange(30))
        newest = [place for place in range(1, len(tokens)) if tokens[place - 1] == tokens[-1]][-PLACES:]
        expected = sorted(((min(_common(tokens, p), LONGEST), p) for p in newest), reverse=True)
        matches = recall.matches()
        assert [match.tokens[0] for match in matches] == list(dict.fromkeys(tokens[p] for _, p in expected))
        if matches:
            length, place = expected[0]
            assert matches[0] == Match(length, tuple(tokens[place : place + AHEAD]))


def _common(tokens: list[int], place: int) -> int:
    length = 0
    while length < place and tokens[place - 1 - length] == tokens[-1 - length]:
        length += 1
    return length


def test_rates_are_learnt_by_length_and_rank() -> None:
    rates = MatchRates()
    assert [math.exp(rates.logprob(2, rank)) for rank in (0, 1, 2)] == pytest.approx([0.5, 0.1, 0.1])
    for index in range(1000):
        rates.observe([Match(2, (5,)), Match(1, (6,))], (5, 6, 6, 7)[index % 4])
        rates.observe([Match(LONGEST, (5,))], 5)
    assert math.exp(rates.logprob(2, 0)) == pytest.approx(0.25, abs=0.01)
    assert math.exp(rates.logprob(1, 3)) == pytest.approx(0.5, abs=0.01)
    assert math.exp(rates.logprob(LONGEST + 5, 0)) == pytest.approx(1.0, abs=0.01)
