"""The prediction tree of a request as the pipeline has it, rebuilt from batches and verdicts. Pure.

Only nodes that were sent are known here: candidates that wait at the head are not in any message.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from pipedec.tree import NO_NODE

PATH = 12  # decided tokens that are remembered


class Fate(Enum):
    OPEN = "open"  # its ancestors are not all decided
    USEFUL = "useful"  # it became a token
    WASTED = "wasted"  # another token was decided in its place, or above it


@dataclass(slots=True, eq=False)
class Prediction:
    """A row that was sent in `step`."""

    id: int
    parent_id: int
    token: int
    position: int
    step: int
    fate: Fate = Fate.OPEN
    children: dict[int, Prediction] = field(default_factory=dict)  # by token

    def subtree(self) -> Iterator[Prediction]:
        """This node and everything below it, parents before children, those sent first before others."""
        queue = deque([self])
        while queue:
            node = queue.popleft()
            yield node
            queue.extend(node.children.values())


@dataclass(slots=True)
class Decided:
    """A token of the output. `id` is its node's, `NO_NODE` until that is sent; `hit`: it was in flight already."""

    position: int
    token: int
    hit: bool
    id: int = NO_NODE


class Tree:
    """What is in flight for one request. `path` are its latest decided tokens; the last of them is the cursor's, which
    is `cursor` once it was sent."""

    def __init__(self, request: int, num_prompt: int) -> None:
        self.request, self.num_prompt = request, num_prompt
        self.num_output = 0
        self.path: deque[Decided] = deque(maxlen=PATH)
        self.cursor: Prediction | None = None
        self._nodes: dict[int, Prediction] = {}

    def sent(self, node: Prediction) -> None:
        """A row of the request goes into the pipeline. The first one after a miss, or of all, is the cursor."""
        self._nodes[node.id] = node
        if self.cursor is None:
            self.cursor, node.fate = node, Fate.USEFUL
            if self.path and self.path[-1].position == node.position:
                self.path[-1].id = node.id
        elif (parent := self._nodes.get(node.parent_id)) is not None:
            parent.children[node.token] = node

    def decided(self, token: int) -> bool:
        """The target decided what follows the cursor: all else below it is wasted. Whether it was in flight."""
        self.num_output += 1
        if self.cursor is None:  # its row went before anybody watched
            return False
        accepted = self.cursor
        child = accepted.children.pop(token, None)
        self._waste(node for sibling in accepted.children.values() for node in sibling.subtree())
        self._nodes.pop(accepted.id, None)
        self.cursor = child
        hit = child is not None
        if child is not None:
            child.fate = Fate.USEFUL
        self.path.append(Decided(accepted.position + 1, token, hit, child.id if child else NO_NODE))
        return hit

    def close(self) -> None:
        """The request is over, or its epoch: what is in flight will not become a token."""
        if self.cursor is not None:
            self._waste(node for child in self.cursor.children.values() for node in child.subtree())
        self.cursor = None
        self._nodes.clear()

    def in_flight(self) -> list[Prediction]:
        """The predictions below the cursor, parents before children."""
        return [] if self.cursor is None else list(self.cursor.subtree())[1:]

    def _waste(self, nodes: Iterator[Prediction]) -> None:
        for node in nodes:
            node.fate = Fate.WASTED
            self._nodes.pop(node.id, None)
