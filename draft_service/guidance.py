"""Where a request has a grammar, predictions follow it too: what the target will not be allowed to say is not proposed.

Correctness does not depend on it: the last stage alone keeps answers to their grammars.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias

from draft_service.sequence import Sequence
from pipedec.model.grammar import Grammars, Matcher
from pipedec.tree import Node

Guides: TypeAlias = Mapping[int, Matcher]  # tree row of a batch -> what may follow it; after other rows, anything may
UNGUIDED: Guides = MappingProxyType({})


class Guidance:
    """The grammars of running requests, as far as their predictions have come. Without `grammars` nothing is guided."""

    def __init__(self, grammars: Grammars | None) -> None:
        self._grammars = grammars

    def after(self, sequence: Sequence, node: Node) -> Matcher | None:
        """What may follow the node; None where anything may."""
        if (matcher := self._at_cursor(sequence)) is None:
            return None
        path = [node, *node.ancestors()][:-1]  # less the cursor
        matcher = matcher.copy()
        matcher.consume([each.token for each in reversed(path)])
        return matcher

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
