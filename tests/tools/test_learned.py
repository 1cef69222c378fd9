"""How calls are written, as chat templates tell."""

from __future__ import annotations

import pytest

from draft_service.reasoning.reasoning_format import find_format
from draft_service.tools.call_format import EXPLAINED, CallFormat
from draft_service.tools.calling import ToolCalling
from draft_service.tools.learned import NotLearntError, learn
from tests.tools.templates import FAMILIES

TAGS = CallFormat(
    '<tool_call>\n{"name": "', '", "arguments": ', "}\n</tool_call>", '}\n</tool_call>\n<tool_call>\n{"name": "'
)
LEARNT = {
    "tags": TAGS,
    "tags, as text": TAGS,
    "thinking": TAGS,
    "list": CallFormat('[CALLS][{"name": "', '", "arguments": ', "}]", '}, {"name": "'),
    "marked": CallFormat("[CALLS]", "[ARGS]", "", "[CALLS]"),
    "bare": CallFormat('{"name": "', '", "parameters": ', "}", after_text=False),
    "as text": CallFormat("<call>", "\n", "</call>", "</call><call>", arguments_as_text=True),
}


@pytest.mark.parametrize("family", LEARNT)
def test_the_format_is_that_of_earlier_calls_in_a_prompt(family: str) -> None:
    tokenizer = FAMILIES[family].tokenizer()
    assert ToolCalling(tokenizer, find_format(tokenizer)).format == LEARNT[family]


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("parameters", "no name with a JSON object behind it"),
        ("numbered", "number its calls"),
        ("sorted", "AttributeError"),
        ("unnamed end", "name of a call does not end"),
        ("counted", "number its calls"),
        ("endless", "no end token"),
        ("ignorant", "does not name the tools"),
        ("user first", "does not name the tools"),
    ],
)
def test_where_it_cannot_be_learnt_prompts_explain_one(family: str, reason: str) -> None:
    tokenizer = FAMILIES[family].tokenizer()
    assert ToolCalling(tokenizer).format is EXPLAINED
    with pytest.raises(NotLearntError, match=reason):
        learn(tokenizer.render, ["<|end|>"])


def test_calls_of_text_that_goes_on_with_tokens_cannot_be_told_from_text() -> None:
    family = FAMILIES["tags, as text"]
    tokenizer = family._replace(template=family.template.replace("<tool_call>", "to:<|start|>")).tokenizer()
    assert ToolCalling(tokenizer).format is EXPLAINED


@pytest.mark.parametrize("name", ["\n", "tool_call", '{"name'])
def test_a_token_may_have_any_name(name: str) -> None:
    family = FAMILIES["ignorant"]
    assert ToolCalling(family._replace(marks={name: True}).tokenizer()).format is EXPLAINED


def test_a_model_without_a_chat_template_has_no_conversations_either() -> None:
    assert ToolCalling(FAMILIES["ignorant"]._replace(template="").tokenizer()).format is EXPLAINED
