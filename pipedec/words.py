"""Numbers of things, as people write them."""

from __future__ import annotations


def counted(number: float, noun: str, plural: str = "") -> str:
    """`1 stage`, `4 stages`; `plural` where it is not the noun with an s. Whole numbers."""
    return f"{number:.0f} {noun if number == 1 else plural or f'{noun}s'}"
