"""Numbers of things in messages."""

from __future__ import annotations

import pytest

from pipedec.words import counted


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0 guesses"), (1, "1 guess"), (2, "2 guesses"), (1.0, "1 guess"), (1e4, "10000 guesses")],
)
def test_one_is_not_many(number: float, text: str) -> None:
    assert counted(number, "guess", "guesses") == text
    assert counted(number, "stage") == text.replace("guesses", "stages").replace("guess", "stage")
