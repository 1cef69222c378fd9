"""How a model writes calls of tools."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_TAG = re.compile(r"<[^<>\s]+>|\[\w+\]")


@dataclass(frozen=True, slots=True)
class CallFormat:
    """An answer's first call is written `opening` NAME `between` ARGUMENTS, each further one `following` NAME `between`
    ARGUMENTS, and behind the last comes `closing`. Arguments are a JSON object.

    Without `following` an answer has one call at most. Text may come before calls if `after_text`.

    In prompts, messages that only call have `no_content` for their content (None: no such field), and if
    `arguments_as_text` the arguments of calls are JSON, else objects. A format that is `explained` is unknown to the
    chat template: prompts say in words how to call.
    """

    opening: str
    between: str
    closing: str
    following: str | None = None
    after_text: bool = True
    no_content: str | None = None
    arguments_as_text: bool = False
    explained: bool = False

    @property
    def tag(self) -> str:
        """What `opening` begins with if that is a tag such as `<tool_call>` or `[CALLS]`, which text does not have;
        else empty."""
        found = _TAG.match(self.opening)
        return found[0] if found else ""

    @property
    def texts(self) -> tuple[str, ...]:
        """What is always the same of answers with calls."""
        return self.opening, self.between, self.following or "", self.closing

    def openings(self, names: Iterable[str]) -> dict[str, str]:
        """What comes before the arguments of an answer's first call, for each tool's name."""
        return {self.opening + name + self.between: name for name in names}

    def followings(self, names: Iterable[str]) -> dict[str, str]:
        """Likewise for calls after the first."""
        return {} if self.following is None else {self.following + name + self.between: name for name in names}


EXPLAINED = CallFormat(
    opening='<tool_call>\n{"name": "',
    between='", "arguments": ',
    closing="}\n</tool_call>",
    following='}\n</tool_call>\n<tool_call>\n{"name": "',
    explained=True,
)
"""What most models that were trained to call tools write, after NousResearch's Hermes."""
