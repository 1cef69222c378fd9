"""How models mark their reasoning, and whether a prompt has begun it."""

from __future__ import annotations

from typing import Any

import pytest

from draft_service.reasoning.reasoning_format import Reasoning, ReasoningFormat, find_format, state_after
from tests.api.scripted import byte_tokenizer
from tests.reasoning.families import FAMILIES

ASK = [{"role": "user", "content": "Why?"}]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_tags_of_a_family_are_found(family: str) -> None:
    assert find_format(FAMILIES[family].tokenizer()) == ReasoningFormat(*FAMILIES[family].tags)


@pytest.mark.parametrize("template", [None, "{{ messages[0].content }}", "{{ raise_exception('no') }}"])
def test_a_model_without_tags_does_not_reason(template: str | None) -> None:
    assert find_format(byte_tokenizer(template)) is None


def test_what_comes_before_an_answer_without_a_tag_of_its_own_is_none() -> None:
    template = FAMILIES["hybrid"].template.replace("\n</think>\n\n", "\n\n").replace("</think>", "")
    assert find_format(byte_tokenizer(template)) is None


def test_what_is_not_an_answers_beginning_is_no_tag() -> None:
    """As gpt-oss: what is reasoned is a message of its own, and its channel comes before the tag."""
    template = FAMILIES["own"].template.replace("<own:think>", "<own:channel>analysis<own:think>")
    assert find_format(byte_tokenizer(template)) is None


@pytest.mark.parametrize(
    ("family", "options", "state"),
    [
        ("hybrid", {}, Reasoning.MAY_BEGIN),
        ("hybrid", {"enable_thinking": False}, Reasoning.NEVER),
        ("opened", {}, Reasoning.HAS_BEGUN),
        ("brackets", {}, Reasoning.MAY_BEGIN),
        ("words", {}, Reasoning.MAY_BEGIN),
    ],
)
def test_a_prompt_says_whether_it_is_reasoned(family: str, options: dict[str, Any], state: Reasoning) -> None:
    tokenizer = FAMILIES[family].tokenizer()
    prompt = tokenizer.encode_chat(ASK, options)
    assert state_after(prompt, tokenizer, ReasoningFormat(*FAMILIES[family].tags)) is state


def test_a_tag_that_somebody_writes_begins_nothing() -> None:
    tokenizer = FAMILIES["hybrid"].tokenizer()
    prompt = tokenizer.encode_chat([{"role": "user", "content": "What is <think>"}], {})
    assert state_after(prompt, tokenizer, ReasoningFormat("<think>", "</think>")) is Reasoning.MAY_BEGIN
