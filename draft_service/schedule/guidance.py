"""Where a request has a grammar, predictions follow it too: what the target will not be allowed to say is not proposed.

Correctness does not depend on it: the last stage alone keeps answers to their grammars.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

from draft_service.schedule.sequence import Sequence
from pipedec.model.grammar import Allowed, Grammars, Matcher
from pipedec.tree import Node


@dataclass(frozen=True, slots=True)
class Guide:
    """What may follow a node: `path` has the tokens from below the cursor to it, `matcher` is at the cursor and only
    read. Looked at by the draft model's thread, beside which the head's has better to do."""

    matcher: Matcher
    path: tuple[int, ...]

    def allowed(self) -> Allowed | None:
        """Which tokens may come next, of shape [vocabulary]; None where anything may, or nothing is known."""
        matcher = self.matcher.copy()
        matcher.consume(self.path)
        allowed = matcher.allowed()
        return None if allowed is None or not allowed.any() else allowed


Guides: TypeAlias = Mapping[int, Guide]  # tree row of a batch -> what may follow it; after other rows, anything may
UNGUIDED: Guides = MappingProxyType({})


class Guidance:
    """The grammars of running requests, as far as their answers have come. Without `grammars` nothing is guided."""

    def __init__(self, grammars: Grammars | None) -> None:
        self._grammars = grammars

    def guides(self, job: Iterable[tuple[Sequence, Node]]) -> Guides:
        """For the rows of a batch that belong to requests with a grammar."""
        guides: dict[int, Guide] = {}
        at_cursor: dict[int, Matcher] = {}
        for row, (sequence, node) in enumerate(job):
            if (matcher := self._at_cursor(sequence)) is not None:
                path = [node.token, *(each.token for each in node.ancestors())][:-1]  # less the cursor
                if sequence.id not in at_cursor:
                    matcher.allowed()  # copies know then what that took to find out, of text nearly a millisecond each
                    at_cursor[sequence.id] = matcher.copy()
                guides[row] = Guide(at_cursor[sequence.id], tuple(reversed(path)))
        return guides

    def forced(self, sequence: Sequence) -> list[int]:
        """Tokens that the grammar leaves no choice of, after the cursor."""
        matcher = self._at_cursor(sequence)
        return [] if matcher is None else matcher.forced()

    def _at_cursor(self, sequence: Sequence) -> Matcher | None:
        sampling = sequence.request.sampling
        if not sampling.grammar or self._grammars is None:
            return None
        if sequence.matcher is None:
            sequence.matcher = self._grammars.matcher(sampling.grammar, sampling.end_tokens)
        sequence.matcher.consume(sequence.output[sequence.matcher.num_tokens :])
        return sequence.matcher
