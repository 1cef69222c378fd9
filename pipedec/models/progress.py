"""How fetching a model tells what it does."""

from __future__ import annotations

from collections.abc import Callable

Progress = Callable[[str, float | None], None]
"""Is given what is being done, and the fraction of it that is done where that is known."""


def silent(what: str, fraction: float | None) -> None:
    """Reports to nobody."""
