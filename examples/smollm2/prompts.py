"""What the target is asked while its answers are collected: six kinds of questions, made of parts, without end.

Sentences and passages to translate and to summarise come from the target's own earlier answers. A prompt that the
benchmarks hold out is never made: `Prompts` is given them and drops its equals. None is made twice in a run.
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

FIELDS = {  # of the forms of each kind, and the parts that fill them, no part twice in a prompt
    "code": {
        "language": "code_languages",
        "second": "code_languages",
        "task": "tasks",
        "object": "objects",
        "snippet": "snippets",
        "widget": "widgets",
        "query": "queries",
        "command": "commands",
        "pattern": "patterns",
        "service": "services",
    },
    "question": {"topic": "topics", "other": "topics", "how": "hows", "why": "whys", "goal": "goals"},
    "story": {
        "hero": "heroes",
        "second": "heroes",
        "event": "events",
        "place": "places",
        "opening": "openings",
        "occasion": "occasions",
        "trouble": "troubles",
        "topic": "topics",
        "name": "names",
    },
    "arithmetic": {"name": "names", "second": "names", "thing": "things"},
    "summary": {},
    "translation": {"language": "languages", "foreign": "foreign", "place": "places"},
}


class Prompts:
    """Prompts of six kinds, drawn with a seed; `heard` gives it more to summarise and to translate."""

    def __init__(self, rng: random.Random, held_out: Collection[str]) -> None:
        self._rng, self._known = rng, set(held_out)
        parts: dict[str, Any] = yaml.safe_load(PARTS.read_text(encoding="utf-8"))
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
            if prompt not in self._known:
                self._known.add(prompt)
                yield prompt

    def _filling(self, kind: str) -> dict[str, str]:
        filling: dict[str, str] = {}
        for field, name in FIELDS[kind].items():
            filling[field] = self._rng.choice([part for part in self._parts[name] if part not in filling.values()])
        match kind:
            case "arithmetic":
                filling |= {name: str(self._rng.randrange(*span)) for name, span in NUMBERS.items()}
            case "summary":
                filling["passage"] = self._rng.choice(self._passages)
            case "translation":
                sentences = re.split(r"(?<=[.!?])\s+", self._rng.choice(self._passages))
                filling["sentence"] = self._rng.choice(sentences)
                filling["words"] = ", ".join(self._rng.sample(self._parts["words"], 5))
        return filling
