"""What a grammar allows, beside Python's own regular expressions and JSON parser."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from pipedec.model.grammar import (
    Grammars,
    Matcher,
    choice_grammar,
    context_free_grammar,
    json_grammar,
    regex_grammar,
)

END, OTHER_END, VOCABULARY = 300, 301, 310  # more rows than tokens
WORDS = ("na", "name", "ag", "age", '{"', '":', '",', "true", "fal", "  ", "12", "ab", "abc", '"}', "]}")


def backend(*words: str) -> Tokenizer:
    """A token for each byte, one for each of the words, and a special one."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: index for index, piece in enumerate([*alphabet, *(word.replace(" ", "Ġ") for word in words)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    return tokenizer


TOKENIZER = backend(*WORDS)
GRAMMARS = Grammars(TOKENIZER, VOCABULARY)
TEXTS = {token: TOKENIZER.decode([token], skip_special_tokens=False) for token in range(TOKENIZER.get_vocab_size())}


def start(grammar: str) -> Matcher:
    return GRAMMARS.matcher(grammar, (END, OTHER_END))


def tokens_allowed(matcher: Matcher) -> set[int]:
    allowed = matcher.allowed()
    assert allowed is not None
    assert allowed.shape == (VOCABULARY,)
    return set(np.flatnonzero(allowed).tolist())


def walk(matcher: Matcher, seed: int, most: int = 200) -> Iterator[int]:
    """A random answer that follows the grammar, token by token."""
    rng = random.Random(seed)
    for _ in range(most):
        token = rng.choice(sorted(tokens_allowed(matcher)))
        if token in (END, OTHER_END):
            return
        yield token
        matcher.consume([token])


PATTERNS = ("a{2,4}b?", "(ab|abc)+c", "[0-9]{1,3}(,[0-9]{3})*", "yes|no|name", "(true|false)  (na)*", "[a-c ]*!")


@pytest.mark.parametrize("pattern", PATTERNS)
@given(seed=st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_of_a_regular_expression_just_those_tokens_that_can_still_match(pattern: str, seed: int) -> None:
    matcher, text = start(regex_grammar(pattern)), ""
    wanted = regex.compile(pattern)

    def possible() -> set[int]:
        ascii_texts = ((token, word) for token, word in TEXTS.items() if word.isascii() and word.isprintable())
        going_on = {token for token, word in ascii_texts if wanted.fullmatch(text + word, partial=True)}
        return going_on | ({END, OTHER_END} if wanted.fullmatch(text) else set())

    def check() -> None:
        """Where the text that follows is certain, its usual tokens alone are allowed."""
        forced = matcher.forced()
        assert tokens_allowed(matcher) == (set(forced[:1]) or possible())
        assert possible().issuperset(forced[:1])

    check()
    for token in walk(matcher.copy(), seed, most=12):
        matcher.consume([token])
        text += TEXTS[token]
        check()


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "tags": {"type": "array", "items": {"enum": ["ab", "abc", None]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("seed", range(12))
def test_random_answers_to_a_schema_follow_it(seed: int) -> None:
    value = json.loads(TOKENIZER.decode(list(walk(start(json_grammar(SCHEMA)), seed, most=600))))
    assert value.keys() == SCHEMA["properties"].keys()
    assert len(value["name"]) <= 8
    assert type(value["age"]) is int
    assert 0 <= value["age"] <= 120
    assert set(value["tags"]) <= {"ab", "abc", None}


@pytest.mark.parametrize("seed", range(8))
def test_where_an_answer_stands_depends_on_its_tokens_alone(seed: int) -> None:
    """Not on how they came, nor on what was asked in between: after a fault they come all at once."""
    grammar = json_grammar(SCHEMA)
    tokens = list(walk(start(grammar), seed, most=600))
    asked = start(grammar)
    for count, token in enumerate(tokens):
        at_once = start(grammar)
        at_once.consume(tokens[:count])
        assert at_once.num_tokens == count
        assert np.array_equal(asked.allowed(), at_once.allowed())
        assert asked.forced() == at_once.forced() == asked.copy().forced()
        asked.consume([token])


def test_a_copy_goes_its_own_way() -> None:
    matcher = start(choice_grammar(["yes", "no"]))
    other = matcher.copy()
    other.consume(TOKENIZER.encode("ye").ids)
    assert {TEXTS[token] for token in tokens_allowed(matcher)} == {"y", "n"}
    assert {TEXTS[token] for token in tokens_allowed(other)} == {"s"}


def test_what_is_forced_is_all_that_is_allowed() -> None:
    matcher = start(regex_grammar("(yes|yellow) submarine"))
    assert TOKENIZER.decode(matcher.forced()) == "ye"
    matcher.consume(TOKENIZER.encode("yes").ids)
    for token in (forced := matcher.forced()):
        assert tokens_allowed(matcher) == {token}
        matcher.consume([token])
    assert TOKENIZER.decode(forced) == " submarine"
    assert tokens_allowed(matcher) == {END, OTHER_END}
    assert matcher.forced() == []


def test_after_the_end_anything_may_follow() -> None:
    """Predictions may run beyond it; nobody reads what they decide."""
    matcher = start(choice_grammar(["no"]))
    matcher.consume([*TOKENIZER.encode("no").ids, OTHER_END, 5])
    assert matcher.allowed() is None
    assert matcher.forced() == []
    assert matcher.copy().allowed() is None
    assert matcher.error == ""


def test_an_answer_that_leaves_its_grammar_cannot_go_on() -> None:
    matcher = start(choice_grammar(["no"]))
    matcher.consume(TOKENIZER.encode("x").ids)
    assert tokens_allowed(matcher) == set()
    assert "doesn't satisfy the grammar" in matcher.error
    assert matcher.forced() == []


def test_special_tokens_are_no_text() -> None:
    """Their names are, spelt out."""
    special = TOKENIZER.token_to_id("<|end|>")
    matcher = start(regex_grammar("(?s).*"))
    assert special not in tokens_allowed(matcher)
    matcher.consume(TOKENIZER.encode("<").ids)
    assert TOKENIZER.token_to_id("|") in tokens_allowed(matcher)


@pytest.mark.parametrize("choices", [['a"b', "a\\c", "ü\n"], ["{}", "#", "/x/"]])
def test_choices_are_texts_and_nothing_else(choices: list[str]) -> None:
    found = {TOKENIZER.decode(list(walk(start(choice_grammar(choices)), seed))) for seed in range(40)}
    assert found == set(choices)


def test_grammars_of_both_dialects() -> None:
    for text in ('start: "a" | "b"', 'root ::= "a" | "b"'):
        assert {TEXTS[token] for token in tokens_allowed(start(context_free_grammar(text)))} == {"a", "ab", "b"} - {
            "ab"
        }
    with pytest.raises(ValueError, match="GBNF"):
        context_free_grammar("root ::= (")


@pytest.mark.parametrize(
    ("grammar", "reason"),
    [
        (regex_grammar("("), "unclosed group"),
        (regex_grammar("(?=a)b"), "look-around"),
        (regex_grammar(r"[^\s\S]"), "no text satisfies it"),
        (json_grammar({"$ref": "#"}), "no text satisfies it"),
        (json_grammar({"type": "strin"}), "Invalid type: strin"),
        (json_grammar({"type": "object", "dependentRequired": {"a": ["b"]}}), "dependentRequired"),
        (json_grammar({"$ref": "https://example.com/schema.json"}), "not present"),
        (json_grammar({"enum": []}), "Unsatisfiable"),
        (context_free_grammar("start: ("), "Expected"),
        ("", "Empty grammar"),
    ],
)
def test_why_a_grammar_is_refused(grammar: str, reason: str) -> None:
    assert reason in start(grammar).refusal()
    assert start(regex_grammar("a*")).refusal() == ""


def test_blanks_in_json_come_to_an_end() -> None:
    matcher = start(json_grammar({"type": "object"}))
    matcher.consume(TOKENIZER.encode("{" + " " * 32).ids)
    assert TEXTS[min(tokens_allowed(matcher))].strip()
    assert not {token for token in tokens_allowed(matcher) if TEXTS[token].isspace()}


def test_a_model_with_fewer_rows_than_its_tokenizer_has_tokens() -> None:
    fewer = Grammars(TOKENIZER, 80)
    matcher = fewer.matcher(regex_grammar("abc!z"), (5,))
    allowed = matcher.allowed()
    assert allowed is not None
    assert allowed.shape == (80,)
    assert TOKENIZER.decode(matcher.forced()) == "abc!", "there is no row for z"
    assert fewer.matcher(regex_grammar("z"), ()).refusal() == "no token of the model can begin it"


def test_the_name_of_a_special_token_is_text_like_any_other() -> None:
    for grammar in (choice_grammar(["say <|end|> please"]), json_grammar({"const": "say <|end|> please"})):
        matcher = start(grammar)
        text = TOKENIZER.decode(matcher.forced(), skip_special_tokens=False)
        assert "say <|end|> please" in text
        assert TOKENIZER.token_to_id("<|end|>") not in matcher.forced()
    assert start(context_free_grammar("start: <|end|>")).refusal(), "a token is no text"


@pytest.mark.parametrize("text", ["<tool_call>x</tool_call>", "[X]"])
def test_so_is_that_of_a_token_which_a_template_brings(text: str) -> None:
    templated = backend()
    templated.add_tokens(["<tool_call>", "</tool_call>", "[X]"])
    matcher = Grammars(templated, VOCABULARY).matcher(choice_grammar([text]), (END,))
    assert templated.decode(matcher.forced()) == text
    matcher.consume(matcher.forced())
    assert tokens_allowed(matcher) == {END}


def test_text_that_the_tokenizer_would_write_otherwise_is_wanted_as_it_stands() -> None:
    normalizing = backend()
    normalizing.normalizer = normalizers.NFC()
    matcher = Grammars(normalizing, VOCABULARY).matcher(choice_grammar(["the\u0301"]), (END,))
    assert normalizing.decode(matcher.forced()) == "the\u0301"
    matcher.consume(matcher.forced())
    assert tokens_allowed(matcher) == {END}


def test_a_word_needs_no_space_in_front() -> None:
    """Though this tokenizer puts one before a text."""
    prefixing = backend("Ġleft", "left", "Ġhand")
    prefixing.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    matcher = Grammars(prefixing, VOCABULARY).matcher(choice_grammar(["left hand"]), (END,))
    assert prefixing.decode(matcher.forced()) == "left hand"
    matcher.consume(matcher.forced())
    assert tokens_allowed(matcher) == {END}


def test_answers_learn_nothing_from_one_another() -> None:
    """Each has the grammar's limits for itself: else the last of these would fail for the states of the others."""
    grammar = json_grammar(
        {"type": "object", "properties": {"s": {"type": "string", "pattern": r"^.{0,150}\[[0-9]+\].{0,150}$"}}}
    )
    rng = random.Random(1)
    for _ in range(120):
        matcher = start(grammar)
        text = '{"s":"' + "".join(rng.choice("abc[]12") for _ in range(60))
        matcher.consume(TOKENIZER.encode(text).ids)
        matcher.allowed()
        assert not matcher.error


def test_a_lenient_schema_leaves_out_what_is_not_known() -> None:
    unique = {"type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    assert "uniqueItems" in start(json_grammar(unique)).refusal()
    assert start(json_grammar(unique, lenient=True)).refusal() == ""


def test_a_tokenizer_that_cannot_be_read_costs_structured_output_alone() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    assert Grammars.of(words, 2) is None
