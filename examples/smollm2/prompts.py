"""What the target is asked while its answers are collected: six kinds of questions, made of parts, without end.

Sentences and passages to translate and to summarise come from the target's own earlier answers. A prompt that the
benchmarks hold out is never made: `Prompts` is given them and drops its equals.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import yaml

PARTS = Path(__file__).with_name("prompts.yaml")
NUMBERS = {"a": (60, 400), "b": (10, 60), "c": (2, 13), "d": (3, 12)}  # of word problems: at least, and less than


class Prompts:
    """Prompts of six kinds, drawn with a seed; `heard` gives it more to summarise and to translate."""

    def __init__(self, rng: random.Random, held_out: Collection[str]) -> None:
        self._rng, self._held_out = rng, set(held_out)
        parts: dict[str, Any] = yaml.safe_load(PARTS.read_text())
        self._forms: dict[str, list[str]] = parts.pop("forms")
        self._parts = {name: of.split(", ") if isinstance(of, str) else of for name, of in parts.items()}
        self._passages: list[str] = []

    def heard(self, answer: str) -> None:
        """Take a text of the target's as material."""
        paragraph = max(re.split(r"\n\s*\n", answer), key=len).strip()
        if 150 < len(paragraph) < 900:
            self._passages.append(paragraph)
            del self._passages[:-2000]

    def __iter__(self) -> Iterator[str]:
        while True:
            kind = self._rng.choice(list(self._forms))
            if kind in ("summary", "translation") and not self._passages:
                continue
            prompt = self._rng.choice(self._forms[kind]).format(**self._filling(kind))
            if prompt not in self._held_out:
                yield prompt

    def _filling(self, kind: str) -> dict[str, str]:
        pick, parts = self._rng.choice, self._parts
        match kind:
            case "code":
                return {"language": pick(parts["code_languages"]), "task": pick(parts["tasks"])}
            case "question":
                return {"topic": pick(parts["topics"]), "other": pick(parts["topics"])}
            case "story":
                return {"hero": pick(parts["heroes"]), "second": pick(parts["heroes"]), "event": pick(parts["events"])}
            case "arithmetic":
                numbers = {name: str(self._rng.randrange(*span)) for name, span in NUMBERS.items()}
                names = {"name": pick(parts["names"]), "second": pick(parts["names"])}
                return numbers | names | {"thing": pick(parts["things"])}
            case "summary":
                return {"passage": pick(self._passages)}
            case "translation":
                sentences = re.split(r"(?<=[.!?])\s+", pick(self._passages))
                return {"language": pick(parts["languages"]), "sentence": pick(sentences)}
        raise ValueError(f"{PARTS}: no filling for forms of kind {kind!r}")
