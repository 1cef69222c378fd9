"""One sequence's tokens as text, with log-probabilities that belong to the text that is out."""

from __future__ import annotations

from draft_service.api.transcript import Delta, ScoredToken, Transcript
from draft_service.generation import FinishReason, TokenEvent
from draft_service.text import Tokenizer
from pipedec.wire.messages import TokenLogprobs
from tests.api.scripted import tokens_of

SCORE = TokenLogprobs(-0.5)


def events(tokenizer: Tokenizer, text: str, finish: FinishReason, end: bool = False) -> list[TokenEvent]:
    tokens = tokens_of(tokenizer, text.encode()) + ([257] if end else [])
    return [TokenEvent(token, SCORE, finish if i == len(tokens) - 1 else None) for i, token in enumerate(tokens)]


def whole(transcript: Transcript, given: list[TokenEvent]) -> Delta:
    deltas: list[Delta] = []
    while not (deltas and deltas[-1].finish):
        deltas.append(transcript.push(given[len(deltas)]))
    return Delta.joined(deltas)


def test_an_end_token_is_neither_text_nor_scored(tokenizer: Tokenizer) -> None:
    total = whole(Transcript(0, tokenizer, ()), events(tokenizer, "é!", "stop", end=True))
    assert (total.text, total.finish) == ("é!", "stop")
    assert [scored.offset for scored in total.tokens] == [0, 0, 1]


def test_at_the_limit_the_last_token_is_text_and_an_unfinished_character_is_shown(tokenizer: Tokenizer) -> None:
    cut = events(tokenizer, "aé", "length")[:2]
    total = whole(Transcript(0, tokenizer, ()), [cut[0], TokenEvent(cut[1].token, SCORE, "length")])
    assert (total.text, total.finish, len(total.tokens)) == ("a\ufffd", "length", 2)


def test_tokens_are_told_when_their_text_begins_to_go_out(tokenizer: Tokenizer) -> None:
    transcript = Transcript(0, tokenizer, ["bcd"])
    told = [transcript.push(event) for event in events(tokenizer, "abcx", "length")]
    assert [(delta.text, [scored.offset for scored in delta.tokens]) for delta in told] == [
        *(("a", [0]), ("", []), ("", [])),
        ("bcx", [1, 2, 3]),
    ]


def test_a_stop_string_takes_its_tokens_with_it(tokenizer: Tokenizer) -> None:
    total = whole(Transcript(0, tokenizer, ["c🙂"]), events(tokenizer, "abc🙂d", "length"))
    a, b = tokens_of(tokenizer, b"ab")
    assert total == Delta(0, "ab", (ScoredToken(a, 0, SCORE), ScoredToken(b, 1, SCORE)), "stop")


def test_what_might_have_become_a_stop_string_goes_out_at_the_end(tokenizer: Tokenizer) -> None:
    total = whole(Transcript(0, tokenizer, ["bcd"]), events(tokenizer, "abc", "stop", end=True))
    assert (total.text, total.finish, len(total.tokens)) == ("abc", "stop", 3)


def test_stop_strings_wait_for_min_tokens(tokenizer: Tokenizer) -> None:
    total = whole(Transcript(0, tokenizer, ["b"], min_tokens=4), events(tokenizer, "abcab", "length"))
    assert (total.text, total.finish) == ("abca", "stop")
