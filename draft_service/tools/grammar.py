"""The grammar of answers that may call tools, in llguidance's dialect of Lark
(https://github.com/guidance-ai/llguidance/blob/main/docs/syntax.md)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from draft_service.tools.call_format import CallFormat
from pipedec.model.grammar import inline_json, one_of, quoted


@dataclass(frozen=True, slots=True)
class Function:
    """A tool: calls of it have JSON arguments that follow the schema. Keywords of it that are not known are left out,
    or make the grammar wrong if it is `strict`."""

    name: str
    parameters: Mapping[str, Any]
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Form:
    """JSON that follows a schema, with the same choice."""

    schema: Mapping[str, Any]
    strict: bool


class Calls(Enum):
    """Whether an answer has calls. Beside those that are `REQUIRED` nothing is said."""

    NONE = auto()
    POSSIBLE = auto()
    REQUIRED = auto()


@dataclass(frozen=True, slots=True)
class Offer:
    """What an answer may be. The prompt tells of all `tools`, as templates read them; these functions may be called,
    `several` times or once. Where it does not call it is text, or has the `form`."""

    tools: Sequence[dict[str, Any]]
    functions: Sequence[Function]
    calls: Calls
    several: bool = True
    form: Form | None = None


class CallGrammar:
    """Answers in a format of calls, by a model whose `named` tokens are no text to grammars. Those that `never` come,
    or end an answer, are none of its parts."""

    def __init__(self, format: CallFormat, named: Mapping[str, int], never: Collection[int | None]) -> None:
        """Raises `ValueError` for a format in which calls cannot be told from text."""
        self._format, self._named = format, named
        names = sorted((name for name in named if name.strip()), key=len, reverse=True)
        self._name = re.compile("|".join(map(re.escape, names)) or r"(?!)")
        # Calls begin with a token of their own, with a tag, or with all that is before their arguments.
        self._token = self._name.match(format.opening)
        self._mark = self._token[0] if self._token else format.tag
        if not self._token and self._name.search(self._mark or format.opening + format.between):
            raise ValueError(f"{format.opening!r} begins calls with text and goes on with tokens")
        own = {name for text in format.texts for name in self._name.findall(text)}
        self._others = sorted(token for name, token in named.items() if name not in own and token not in never)

    def of(self, offer: Offer) -> str:
        """The grammar of an answer."""
        format, calls = self._format, offer.calls is not Calls.NONE
        openings = format.openings(each.name for each in offer.functions)
        rules = {"start": self._start(offer)} | self._texts(openings)
        if offer.form is not None:
            rules["answer"] = inline_json(offer.form.schema, lenient=not offer.form.strict)
        if calls:
            schemas = (inline_json(each.parameters, lenient=not each.strict) for each in offer.functions)
            rules |= {f"arguments_{index}": schema for index, schema in enumerate(schemas)}
            rules |= self._first(openings, with_text=self._may_say(offer))
            more = offer.several and format.following is not None
            following = f"({self._symbols(format.following or '')} call)*" if more else ""
            rules["calls"] = f"first {following} {self._symbols(format.closing)}"
            if more or self._mark:
                each = enumerate(offer.functions)
                rules["call"] = " | ".join(
                    f"{self._symbols(function.name + format.between)} arguments_{index}" for index, function in each
                )
        return "\n".join(f"{name}: {body}" for name, body in rules.items())

    def _may_say(self, offer: Offer) -> bool:
        """Whether text may come before calls."""
        return self._format.after_text and offer.calls is Calls.POSSIBLE and offer.form is None

    def _start(self, offer: Offer) -> str:
        # Never one TEXT after another: both together may be what neither is.
        if offer.calls is Calls.REQUIRED:
            return "calls" if self._format.after_text else "other* calls"
        if offer.form is not None:
            return "answer | calls"
        calls = "" if offer.calls is Calls.NONE else "calls"
        if not self._format.after_text:
            return f"other* ({calls and f'{calls} | '}TEXT (other SOME?)*)?"
        return f"(TEXT? other)* TEXT? {calls and f'{calls}?'}"

    def _texts(self, openings: Iterable[str]) -> dict[str, str]:
        """TEXT, which does not look like a call, and `other`, the tokens that are no text: not those of calls, and not
        those that end an answer, which may come wherever it can end."""
        mark = quoted(self._mark) if self._mark else " | ".join(map(quoted, openings))
        return {
            "ANY": r"/(?s:.*)/",
            "SOME": r"/(?s:.+)/",
            "MARK": mark,
            "TEXT": "SOME & ~(ANY MARK ANY)" if self._format.after_text else r"SOME & ~(/\s*/ MARK ANY)",
            "other": one_of(self._others),
        }

    def _first(self, openings: Iterable[str], *, with_text: bool) -> dict[str, str]:
        """The first call, with the text before it where a mark of text is what ends that."""
        if self._token:
            return {"first": f"{self._symbols(self._format.opening)} call"}
        # One terminal up to the end of the mark: lazy, for it ends there.
        lead, lazy = ("ANY", "[lazy]") if with_text else (r"/\s{0,8}/", "")
        if self._mark:
            rest = self._symbols(self._format.opening.removeprefix(self._mark))
            return {f"begin{lazy}": "BEGIN", "BEGIN": f"{lead} {quoted(self._mark)}", "first": f"begin {rest} call"}
        rules = dict[str, str]()
        for index, opening in enumerate(openings):
            rules |= {f"begin_{index}{lazy}": f"BEGIN_{index}", f"BEGIN_{index}": f"{lead} {quoted(opening)}"}
        return rules | {"first": " | ".join(f"begin_{i} arguments_{i}" for i in range(len(rules) // 2))}

    def _symbols(self, text: str) -> str:
        """Text with tokens in it that a model has for parts of it."""
        symbols, end = list[str](), 0
        for name in self._name.finditer(text):
            symbols += [quoted(text[end : name.start()]), f"<[{self._named[name[0]]}]>"]
            end = name.end()
        return " ".join(each for each in (*symbols, quoted(text[end:])) if each != '""')
