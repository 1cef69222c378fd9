"""The pages that people read, taken apart: links, code, commands."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?:^ {4}.*\n?)+", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PROGRAMS = ("pipedec", "make", "python", "helm", "kubectl", "docker")


@dataclass(frozen=True, slots=True)
class Command:
    """A command of a page: `words` without redirections, `whole` if it can be run as it stands there."""

    page: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.page}: {' '.join(self.words)}"


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return _INDENTED.sub("\n", _FENCE.sub("\n", page.read_text()))


def links(page: Path) -> list[str]:
    """Targets of links and images."""
    return _LINK.findall(_INLINE.sub("", prose(page)))


def anchors(page: Path) -> set[str]:
    """What a link to a heading of the page may be."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("\n", page.read_text()), re.MULTILINE)
    plain = (re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in plain}


def blocks(page: Path, language: str) -> list[str]:
    """Fenced blocks of a language."""
    return [text for _, kind, text in _FENCE.findall(page.read_text()) if kind == language]


def inline(page: Path) -> list[str]:
    """Code within sentences."""
    return [" ".join(code.split()) for code in _INLINE.findall(prose(page))]


def commands(page: Path) -> Iterator[Command]:
    """Every command of the programs that we know, in blocks and within sentences."""
    text = page.read_text()
    unfenced = _FENCE.sub("\n", text)
    shell = [text for _, kind, text in _FENCE.findall(text) if kind in ("", "sh", "bash", "console")]
    for block in (*_INDENTED.findall(unfenced), *shell):
        for line in block.replace("\\\n", " ").splitlines():
            yield from _command(page, line.strip().removeprefix("$ "), whole=True)
    for code in inline(page):
        yield from _command(page, code, whole=False)


def _command(page: Path, line: str, whole: bool) -> Iterator[Command]:
    if line.split(" ")[0].removeprefix(".venv/bin/") not in PROGRAMS or " " not in line:
        return
    words = shlex.split(line, comments=True)
    words[0] = words[0].removeprefix(".venv/bin/")
    end = next((i for i, word in enumerate(words) if word in ("|", ">", "&&", ";", "<")), len(words))
    yield Command(page.name, tuple(words[:end]), whole)
