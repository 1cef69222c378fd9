"""An answer's text, as it comes, taken apart into what is said and what is called."""

from __future__ import annotations

import secrets
import string
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from draft_service.text import num_undecided
from draft_service.tools.call_format import CallFormat

ID_LENGTH = 9  # letters and digits: the only ids that all chat templates take back


@dataclass(frozen=True, slots=True)
class CallDelta:
    """What became certain of call `index`: of a new one its id and name, and then its arguments, piece by piece."""

    index: int
    arguments: str = ""
    id: str = ""
    name: str = ""

    def __add__(self, later: CallDelta) -> CallDelta:
        return CallDelta(self.index, self.arguments + later.arguments, self.id, self.name)


class CallScanner:
    """Takes an answer in this format apart, in which the tools of these `names` may be called. It needs the names of
    the special tokens `marks` in the text, and to be told of other ones."""

    def __init__(
        self, format: CallFormat, names: Collection[str], marks: Collection[int] = (), *, after_text: bool = True
    ) -> None:
        """Whether calls are such `after_text` too, not only at the beginning."""
        self.marks = marks
        self._after_text, self._tag = after_text, format.tag
        self._openings, self._followings = format.openings(names), format.followings(names)
        self._held = ""
        self._arguments: _JsonObject | None = None  # of the call that is being written
        self.num_calls = 0

    @property
    def num_held(self) -> int:
        """Characters that nothing is known of yet."""
        return len(self._held)

    @property
    def has_called(self) -> bool:
        """Whether there were calls, all of them whole."""
        return self.num_calls > 0 and self._arguments is None

    def push(self, piece: str) -> tuple[str, list[CallDelta]]:
        """What is said, and of calls what is certain now and was not before."""
        self._held += piece
        said, calls = ("", []) if self.num_calls else self._say()
        while self.num_calls and self._held:
            if self._arguments is not None:
                calls.append(CallDelta(self.num_calls - 1, self._take(self._arguments.end_in(self._held))))
                if self._arguments.is_whole:
                    self._arguments = None
            elif (head := _first(self._held, self._followings)) and head[0] == 0:
                calls.append(self._begin(*head, self._followings))
            else:
                break
        return said, calls

    def interrupt(self) -> str:
        """There is a special token here, which is no text: a call does not begin before it and end behind it. What
        waited, and is said."""
        if self.num_calls:
            return ""
        if self._held and not self._after_text:
            self._openings = {}
        return self._take(len(self._held))

    def flush(self) -> str:
        """What waited, and is said after all: the answer is over. A call that was cut before its arguments is none."""
        is_call = self.num_calls or (self._tag and self._held.lstrip().startswith(self._tag))
        return "" if is_call else self._take(len(self._held))

    def _say(self) -> tuple[str, list[CallDelta]]:
        head = _first(self._held, self._openings)
        if head and (self._after_text or not self._held[: head[0]].strip()):
            said = self._held[: head[0]].rstrip()
            return said, [self._begin(*head, self._openings)]
        certain = len(self._held) - num_undecided(self._held, self._openings)
        if not self._after_text and self._held[:certain].strip():
            self._openings = {}  # it is a text
            return self._take(len(self._held)), []
        # Blanks before a call are not said.
        return self._take(len(self._held[:certain].rstrip()) if self._openings else certain), []

    def _begin(self, start: int, head: str, heads: Mapping[str, str]) -> CallDelta:
        self._take(start + len(head))
        self._arguments = _JsonObject()
        self.num_calls += 1
        return CallDelta(self.num_calls - 1, id=_new_id(), name=heads[head])

    def _take(self, size: int) -> str:
        taken, self._held = self._held[:size], self._held[size:]
        return taken


class _JsonObject:
    """Where a JSON object ends that comes in pieces."""

    def __init__(self) -> None:
        self._depth, self._in_string, self._escaped = 0, False, False
        self.is_whole = False

    def end_in(self, piece: str) -> int:
        """The number of characters of this piece that belong to it."""
        for index, character in enumerate(piece):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped, self._in_string = character == "\\", character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    self.is_whole = True
                    return index + 1
        return len(piece)


def _first(text: str, wanted: Iterable[str]) -> tuple[int, str] | None:
    """Where the first of these is in a text, and which."""
    return min(((start, each) for each in wanted if (start := text.find(each)) >= 0), default=None)


def _new_id() -> str:
    return "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(ID_LENGTH))
