"""The grammar of answers that may call tools, in llguidance's dialect of Lark
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md)."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from draft_service.tools.call_format import CallFormat
from pipedec.model.grammar import inline_json

THOUGHT = ("<think>", "</think>")


@dataclass(frozen=True, slots=True)
class Function:
    """A tool: calls of it have JSON arguments that follow the schema. Keywords of it that are not known are left out,
    or make the grammar wrong if it is `strict`."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False


class Thinking(Enum):
    """Whether the prompt ends within a thought of the model's, or the answer may begin with one."""

    NEVER = auto()
    MAY_BEGIN = auto()
    HAS_BEGUN = auto()


class CallGrammar:
    """Answers in a format of calls, by a model whose `named` tokens are no text to grammars, and of which `end_tokens`
    end an answer."""

    def __init__(self, form: CallFormat, named: Mapping[str, int], end_tokens: Collection[int]) -> None:
        """Raises `ValueError` for a format in which calls cannot be told from text."""
        self._form, self._named, self._end_tokens = form, named, end_tokens
        self._name = re.compile("|".join(map(re.escape, sorted(named, key=len, reverse=True))) or r"(?!)")
        # Calls begin with a token of their own, or with text that says nothing else.
        self._mark = self._name.match(form.opening)
        if self._mark is None and self._name.search(form.opening + form.between):
            raise ValueError(f"{form.opening!r} begins calls with text and goes on with tokens")
        self._has_thoughts = all(each in named for each in THOUGHT)

    def thinking(self, prompt: Sequence[int]) -> Thinking:
        """How the prompt leaves the model."""
        if not self._has_thoughts:
            return Thinking.NEVER
        begun, ended = (self._named[each] for each in THOUGHT)
        latest = next((token for token in reversed(prompt) if token in (begun, ended)), ended)
        return Thinking.HAS_BEGUN if latest == begun else Thinking.MAY_BEGIN

    def of(self, functions: Sequence[Function], thinking: Thinking, *, required: bool, several: bool) -> str:
        """The grammar of one answer, of `several` calls at most or one. If they are `required` nothing else is said,
        but a thought before."""
        form = self._form
        openings = form.openings(each.name for each in functions)
        arguments = [f"arguments_{index}" for index in range(len(functions))]
        rules = {
            rule: inline_json(each.parameters, lenient=not each.strict)
            for rule, each in zip(arguments, functions, strict=True)
        }
        calls = (
            f"{self._symbols(each.name + form.between)} {rule}" for rule, each in zip(arguments, functions, strict=True)
        )
        rules["call"] = " | ".join(calls)
        if self._mark:
            rules["first"] = f"{self._symbols(form.opening)} call"
        else:
            # One terminal up to the arguments, which ends TEXT: with that text, and lazy, where there may be some.
            text, lazy = ("ANY ", "[lazy]") if form.after_text and not required else ("", "")
            rules |= {f"begin_{index}{lazy}": text + _quoted(opening) for index, opening in enumerate(openings)}
            rules["first"] = " | ".join(f"begin_{index} {rule}" for index, rule in enumerate(arguments))
        more = several and form.following is not None
        following = f"({self._symbols(form.following or '')} call)*" if more else ""
        rules["calls"] = f"first {following} {self._symbols(form.closing)}"
        rules |= self._said(openings)
        rules["start"] = self._start(thinking, required)
        return "\n".join(f"{name}: {body}" for name, body in rules.items())

    def _start(self, thinking: Thinking, required: bool) -> str:
        # Never one TEXT after another: both together may be what neither is.
        if not self._form.after_text:
            return "other* calls" if required else "other* (calls | TEXT (other SOME?)*)?"
        if not required:
            return "(TEXT? other)* TEXT? calls?"
        if thinking is Thinking.NEVER:
            return "calls"
        begun, ended = (f"<[{self._named[each]}]>" for each in THOUGHT)
        thought = f"(TEXT? unended)* TEXT? {ended} BLANK?"
        return f"{thought} calls" if thinking is Thinking.HAS_BEGUN else f"({begun} {thought})? calls"

    def _said(self, openings: Iterable[str]) -> dict[str, str]:
        """Text that does not look like a call, and tokens that are no text: but for those that begin calls, or end
        thoughts, or answers, which end wherever they may."""
        mark = self._mark[0] if self._mark else ""
        others = {name: token for name, token in self._named.items() if name != mark and token not in self._end_tokens}
        return {
            "ANY": r"/(?s:.*)/",
            "SOME": r"/(?s:.+)/",
            "BLANK": r"/\s{1,8}/",
            "MARK": _quoted(mark) if mark else " | ".join(map(_quoted, openings)),
            "TEXT": "SOME & ~(ANY MARK ANY)" if self._form.after_text else "SOME & ~(MARK ANY)",
            "other": _one_of(others.values()),
            "unended": _one_of(token for name, token in others.items() if name != THOUGHT[1]),
        }

    def _symbols(self, text: str) -> str:
        """Text with tokens in it that a model has for parts of it."""
        symbols, end = list[str](), 0
        for name in self._name.finditer(text):
            symbols += [_quoted(text[end : name.start()]), f"<[{self._named[name[0]]}]>"]
            end = name.end()
        return " ".join(each for each in (*symbols, _quoted(text[end:])) if each != '""')


def _one_of(tokens: Iterable[int]) -> str:
    numbers = ",".join(map(str, tokens))
    return f"<[{numbers}]>" if numbers else r"/[^\s\S]/"  # which nothing is


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
