"""How a model marks its reasoning: learnt from what its chat template makes of it, or one of the usual tags."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from draft_service.text import USER, Tokenizer
from pipedec.errors import RequestError

# What messages of before call their reasoning: templates read the one name or the other.
FIELDS = ("reasoning_content", "reasoning", "thinking")

_TAG = r"(<[^<>\s]+>|\[[^\[\]\s]+\])"
_REASONING, _CONTENT = "It may be bcdfg.", "It is hjklm."
_TAIL = 32  # tokens of a prompt, among which a tag and blanks behind it have room


@dataclass(frozen=True, slots=True)
class ReasoningFormat:
    """Reasoning is what an answer begins with, between these two."""

    opening: str
    closing: str


class Reasoning(Enum):
    """Whether an answer may begin with reasoning, or goes on with that which its prompt has begun."""

    NEVER = auto()
    MAY_BEGIN = auto()
    HAS_BEGUN = auto()


_USUAL = (
    ReasoningFormat("<think>", "</think>"),
    ReasoningFormat("[THINK]", "[/THINK]"),
    ReasoningFormat("<thought>", "</thought>"),
    ReasoningFormat("<thinking>", "</thinking>"),
    ReasoningFormat("<reasoning>", "</reasoning>"),
)


def find_format(tokenizer: Tokenizer) -> ReasoningFormat | None:
    """That of the tokenizer's model; None if it does not reason."""
    return _learnt(tokenizer) or next((each for each in _USUAL if _is_known(each, tokenizer)), None)


def state_after(prompt: Sequence[int], tokenizer: Tokenizer, format: ReasoningFormat) -> Reasoning:
    """Of the answer to a prompt."""
    tail = tokenizer.decode(prompt[-_TAIL:], special=True).rstrip()
    if tail.endswith(format.opening):
        return Reasoning.HAS_BEGUN
    return Reasoning.NEVER if tail.endswith(format.closing) else Reasoning.MAY_BEGIN


def _learnt(tokenizer: Tokenizer) -> ReasoningFormat | None:
    """From the prompt of a conversation in which was reasoned, if that is in it, and an answer begins with it."""
    answer = {"role": "assistant", "content": _CONTENT} | dict.fromkeys(FIELDS, _REASONING)
    try:
        text, prompt = tokenizer.render([USER, answer], opens=False), tokenizer.render([USER])
    except RequestError:
        return None
    found = re.search(rf"{_TAG}\s*{re.escape(_REASONING)}\s*{_TAG}.*{re.escape(_CONTENT)}", text, re.DOTALL)
    if found is None or found[1] == found[2] or not prompt.startswith(text[: found.start()].rstrip()):
        return None
    return ReasoningFormat(found[1], found[2])


def _is_known(format: ReasoningFormat, tokenizer: Tokenizer) -> bool:
    """Whether the tags are tokens, or the chat template takes answers apart that have them."""
    tokens = (tokenizer.backend.token_to_id(each) for each in (format.opening, format.closing))
    return None not in tokens or format.closing in tokenizer.chat_template
