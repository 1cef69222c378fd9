"""What a grammar lets an answer be."""

from __future__ import annotations

from collections.abc import Sequence

from pipedec.model.grammar import Matcher


def is_allowed(matcher: Matcher, tokens: Sequence[int], end: int) -> bool:
    """Whether these tokens may follow, and then the end token."""
    for token in (*tokens, end):
        allowed = matcher.allowed()
        if allowed is None or not allowed[token]:
            return False
        matcher.consume([token])
    return True
