"""How a model writes calls of tools."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CallFormat:
    """Calls are written `opening` NAME `between` ARGUMENTS, for each other call `following` NAME `between` ARGUMENTS,
    and in the end `closing`; arguments are a JSON object.

    `following` is None where an answer has one call at most; `after_text` tells whether text may come before calls.
    A chat template wants earlier calls with `no_content` as the content of messages that have calls alone, and
    arguments perhaps as text. Where it knows nothing of tools, it is `explained` to the model how calls are written.
    """

    opening: str
    between: str
    closing: str
    following: str | None = None
    after_text: bool = True
    no_content: str | None = None
    arguments_as_text: bool = False
    explained: bool = False

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
