"""What may be reasoned before an answer that has a form, or is free and may call."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import pytest

from draft_service.reasoning.reasoner import Reasoner
from draft_service.reasoning.reasoning_format import find_format
from draft_service.text import Tokenizer
from pipedec.model.grammar import (
    Grammars,
    choice_grammar,
    context_free_grammar,
    json_grammar,
    one_of,
    regex_grammar,
)
from tests.allowed import is_allowed
from tests.reasoning.families import FAMILIES

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
FORMS = {
    "json": (json_grammar(NUMBER), '{"n": 1}'),
    "regex": (regex_grammar("a+b"), "aab"),
    "choice": (choice_grammar(["yes", "no"]), "no"),
    "gbnf": (context_free_grammar('root ::= "x" | "y" root'), "yyx"),
}
FREE = 'start: (TEXT? other)* TEXT?\nTEXT: /(?s:.+)/ & ~(/(?s:.*)/ "<call>" /(?s:.*)/)\nother: ' + one_of([256])
VOCABULARY = 262


class Model(NamedTuple):
    tokenizer: Tokenizer
    reasoner: Reasoner
    grammars: Grammars

    def may_be(self, text: str, grammar: str, prompt: str, *, is_free: bool = False) -> bool:
        """Whether an answer to the prompt may be this text, and end there."""
        return self.may_follow(self.tokens(prompt), self.tokens(text), grammar, is_free=is_free)

    def may_follow(self, prompt: list[int], answer: list[int], grammar: str, *, is_free: bool = False) -> bool:
        """The same of tokens."""
        whole = self.reasoner.grammar(grammar, prompt, is_free=is_free)
        (end,) = self.tokenizer.end_tokens
        matcher = self.grammars.matcher(whole, (end,))
        assert not matcher.refusal()
        return is_allowed(matcher, answer, end)

    def tokens(self, text: str) -> list[int]:
        return self.tokenizer.backend.encode(text, add_special_tokens=False).ids


@cache
def model(family: str) -> Model:
    tokenizer = FAMILIES[family].tokenizer()
    reasoner = Reasoner(tokenizer, find_format(tokenizer))
    return Model(tokenizer, reasoner, Grammars(tokenizer.backend, VOCABULARY))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_form_begins_behind_reasoning(family: str, form: str) -> None:
    it, (opening, closing) = model(family), FAMILIES[family].tags
    grammar, answer = FORMS[form]
    reasoned = f"Hm, {{{closing[:-1]}."
    for text, behind_question, within in (
        (answer, True, False),
        (f"{opening}{reasoned}{closing}\n\n{answer}", True, True),
        (f"\n{opening}\n{closing}{answer}", True, True),
        (f"{reasoned}{closing}\n\n{answer}", False, True),
        (f"{closing}{answer}", False, True),
        (f"{opening}{reasoned}", False, False),
        (f"{opening}{reasoned}{closing}", False, False),
        (f"{opening}{reasoned}{closing}Well", False, False),
        (f"{answer}{opening}{reasoned}{closing}", False, False),
    ):
        assert it.may_be(text, grammar, "Why?") == behind_question, text
        assert it.may_be(text, grammar, f"Why?{opening}\n") == within, text
        assert it.may_be(text, grammar, f"Why?{opening}\n\n{closing}\n\n") == (text == answer), text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_free_answer_may_end_within_its_reasoning(family: str) -> None:
    it, (opening, closing) = model(family), FAMILIES[family].tags
    for text, allowed in (
        (f"{opening}Hm <call>", True),
        (f"{opening}Hm <call>{closing}", True),
        (f"{opening}Hm{closing} Yes<|start|>.", True),
        (f"{opening}Hm{closing} <call>", False),
        ("<call>", False),
        ("Yes.", True),
    ):
        assert it.may_be(text, FREE, "Why?", is_free=True) == allowed, text
    for text in "", "Hm", f"Hm{closing}", "<call>":
        assert it.may_be(text, FREE, f"Why?{opening}\n", is_free=True), text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tag_ends_reasoning_however_it_is_written(family: str) -> None:
    it, (opening, closing) = model(family), FAMILIES[family].tags
    letters = it.tokens(closing[0]) + it.tokens(closing[1:])
    begun, end = it.tokens(f"Why?{opening}"), it.tokens(f"{closing}no")
    assert not it.may_follow(begun, [*letters, *it.tokens("Hm"), *end], choice_grammar(["no"]))
    assert it.may_follow(begun, [*letters[:-1], *end], choice_grammar(["no"]))


def test_what_calls_are_written_with_is_not_in_reasoning() -> None:
    tokenizer = FAMILIES["hybrid"].tokenizer()
    start = tokenizer.named_tokens["<|start|>"]
    for calls, allowed in ((), True), ((start,), False):
        reasoner = Reasoner(tokenizer, find_format(tokenizer), calls)
        it = Model(tokenizer, reasoner, Grammars(tokenizer.backend, VOCABULARY))
        assert it.may_be("<think>Hm<|start|></think>no", choice_grammar(["no"]), "Why?") == allowed
