"""Chat templates in the manner of the families that reason, and tokenizers that have their tokens."""

from __future__ import annotations

from typing import NamedTuple

from tokenizers import AddedToken

from draft_service.text import Tokenizer
from tests.api.scripted import byte_tokenizer


def _template(said: str, prompt: str = "") -> str:
    answer = f"{{% if message.role == 'assistant' %}}{said}{{% else %}}{{{{ message.content }}}}{{% endif %}}"
    turns = f"{{% for message in messages %}}<|start|>{{{{ message.role }}}}\n{answer}<|end|>{{% endfor %}}"
    return f"{turns}{{% if add_generation_prompt %}}<|start|>assistant\n{prompt}{{% endif %}}"


def _shown(opening: str, closing: str, field: str = "reasoning_content") -> str:
    reasoned = f"{{% if message.{field} and loop.last %}}{opening}{{{{ message.{field} }}}}{closing}{{% endif %}}"
    return f"{reasoned}{{{{ message.content }}}}"


_SPLIT = "{{ message.content.split('</think>')[-1] }}"
_SKIPPED = "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"

HYBRID = _template(_shown("<think>\n", "\n</think>\n\n"), _SKIPPED)
"""As Qwen 3: it may reason, and shows what it did last."""

OPENED = _template(_SPLIT, "<think>\n")
"""As DeepSeek-R1: every prompt begins reasoning, and what was reasoned before is left out."""

BRACKETS = _template(_shown("[THINK]", "[/THINK]", "reasoning"))
"""As Magistral: special tokens, which are no text."""

OWN = _template(_shown("<own:think>", "</own:think>\n", "thinking"))
"""As Seed-OSS: tags that nobody else has."""

WORDS = _template(_SPLIT)
"""As Nemotron: tags are text like any other."""


class Family(NamedTuple):
    template: str
    tags: tuple[str, str] = ("<think>", "</think>")
    special: bool | None = False  # None: no tokens

    def tokenizer(self) -> Tokenizer:
        tags = () if self.special is None else self.tags
        return byte_tokenizer(self.template, [AddedToken(tag, special=bool(self.special)) for tag in tags])


FAMILIES = {
    "hybrid": Family(HYBRID),
    "opened": Family(OPENED),
    "brackets": Family(BRACKETS, ("[THINK]", "[/THINK]"), special=True),
    "own": Family(OWN, ("<own:think>", "</own:think>")),
    "words": Family(WORDS, special=None),
}
