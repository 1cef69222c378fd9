"""The dynamic prediction tree of one request (arXiv 2504.04104). Plain ints and floats; the draft's own words, which
are arrays, are only kept for the policy.

What the draft model proposes is first a *candidate*, a token and how likely it is, which its parent keeps. Most never
come up, so only one that is asked for, as the best there is or by name, becomes a *node*. Then, in either order, it is
*sent* (it is in the pipeline, or past it), and it is *drafted* (handed to the draft model) and later *expanded* (its
children are proposed). The root is the *cursor*: the newest accepted token, whose output at the last stage decides the
next one.

    tree = PredictionTree(token=17, position=5)
    tree.grow(tree.root, [(42, -0.1), (7, -2.5)])
    step = tree.advance(42)     # the target decided 42: its subtree stays, everything else is dead
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

from pipedec.proposals import Children, Proposals
from pipedec.recall import Match

NO_NODE = -1
NO_SLOT = -1


@dataclass(slots=True, eq=False)
class Node:
    """One predicted token. `score` is the cumulative draft log-probability of its path; it compares within a tree.

    `parent` is None at the root, above which everything is certain; `parent_id` stays.
    """

    id: int
    parent_id: int
    token: int
    position: int
    score: float
    parent: Node | None
    children: dict[int, Node] = field(default_factory=dict)  # by token
    candidates: Children = ()  # likeliest first; those before `num_taken` are children, or were recalled before
    num_taken: int = 0
    proposed: tuple[Proposals, int] | None = None  # the draft model's own word on them, and which row of it
    recalled: Sequence[Match] | None = None  # when it was the cursor: what the text itself suggested
    slot: int = NO_SLOT
    above: tuple[int, ...] = ()  # slots of its ancestors, the parent's first, up to some cursor; once it is a row
    sent: bool = False
    drafted: bool = False
    expanded: bool = False
    alive: bool = True
    ahead: int = 0  # levels below the cursor when it was sent

    def ancestors(self) -> Iterator[Node]:
        """Parent, grandparent, ... up to and including the root of the tree."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def subtree(self) -> Iterator[Node]:
        """This node and everything below it, parents before children."""
        stack = [self]
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children.values())


@dataclass(frozen=True, slots=True)
class Advance:
    """What `PredictionTree.advance` did: the old cursor, the new one, and what died.

    `foreseen`: the new cursor was in the tree, sent or not. It is a *hit* if it was sent: then its own output needs
    no further round trip.
    """

    accepted: Node
    cursor: Node
    foreseen: bool
    dead: tuple[Node, ...]

    @property
    def hit(self) -> bool:
        return self.cursor.sent


def _score_below(parent: Node, logprob: float) -> float:
    """Of a child. It never outranks its parent, also where rounding makes a probability 1 + epsilon."""
    return parent.score + min(logprob, 0.0)


Queue = list[tuple[float, int, Node]]  # a heap: the best score first, then the oldest


class PredictionTree:
    """All live predictions below the cursor, with the best unsent and the best undrafted one at hand."""

    def __init__(self, token: int, position: int) -> None:
        self.num_nodes = 0
        self._next_id = 0
        self._unsent: Queue = []
        self._undrafted: Queue = []
        self._candidates: list[tuple[float, int, int, Node]] = []  # the next one of each parent, and its index there
        self._newest: list[Node] = []
        self.root = self._add(token, position, 0.0, None, NO_NODE)

    def _add(self, token: int, position: int, score: float, parent: Node | None, parent_id: int) -> Node:
        node = Node(self._next_id, parent_id, token, position, score, parent)
        self._next_id += 1
        self.num_nodes += 1
        entry = (-score, node.id, node)
        heapq.heappush(self._unsent, entry)
        heapq.heappush(self._undrafted, entry)
        return node

    def logprob(self, node: Node) -> float:
        """Cumulative log-probability below the cursor: with it nodes of different requests compare."""
        return node.score - self.root.score

    def grow(self, parent: Node, proposals: Children) -> None:
        """Give a live node candidates: `(token, log-probability)` pairs, likeliest first. A child that it has already
        is left as it is. To be called once for a node, and again after `forget_drafts`."""
        if parent.alive:
            parent.expanded, parent.candidates, parent.num_taken = True, proposals, 0
            self._offer(parent)

    def child(self, parent: Node, token: int) -> Node | None:
        """The child of a live node with this token, if there is one, or a candidate for it."""
        if (known := parent.children.get(token)) is not None:
            return known
        waiting = parent.candidates[parent.num_taken :]
        return next((self.extend(parent, *candidate) for candidate in waiting if candidate[0] == token), None)

    def children(self, parent: Node) -> Collection[Node]:
        """All children of a live node, every candidate among them."""
        for token, logprob in parent.candidates[parent.num_taken :]:
            self.extend(parent, token, logprob)
        parent.num_taken = len(parent.candidates)
        return parent.children.values()

    def extend(self, parent: Node, token: int, logprob: float) -> Node:
        """The child of a live node with this token, new if need be; unlike after `grow`, the draft model has yet to
        say what else may follow the parent."""
        if token not in parent.children:
            score = _score_below(parent, logprob)
            parent.children[token] = self._add(token, parent.position + 1, score, parent, parent.id)
        return parent.children[token]

    def _offer(self, parent: Node) -> None:
        """Queue a node's next candidate that is not its child by now."""
        candidates, index = parent.candidates, parent.num_taken
        while index < len(candidates) and candidates[index][0] in parent.children:
            index += 1
        parent.num_taken = index
        if index < len(candidates):
            score = _score_below(parent, candidates[index][1])
            heapq.heappush(self._candidates, (-score, parent.id, index, parent))

    def _take_up(self, queue: Queue) -> None:
        """Make nodes of the candidates that outrank all that is queued."""
        candidates = self._candidates
        while candidates and (not queue or candidates[0][0] < queue[0][0]):
            _, _, index, parent = heapq.heappop(candidates)
            if parent.alive and parent.num_taken == index:
                self.extend(parent, *parent.candidates[index])
                self._offer(parent)

    def mark_sent(self, node: Node) -> None:
        """The node enters the pipeline; its parent must have entered, or be entering with it."""
        node.sent, node.ahead = True, node.position - self.root.position
        if self._newest and self._newest[0].position == node.position:
            self._newest.append(node)
        elif not self._newest or self._newest[0].position < node.position:
            self._newest = [node]

    def newest_level(self) -> list[Node]:
        """The deepest live nodes that were sent: the paper's newest level. Empty while the root is not sent."""
        self._newest = [node for node in self._newest if node.alive]
        if not self._newest and self.root.sent:
            sent = [node for node in self.root.subtree() if node.sent]
            deepest = max(node.position for node in sent)
            self._newest = [node for node in sent if node.position == deepest]
        return self._newest

    def best_unsent(self) -> Node | None:
        """The likeliest live node that is not sent. Its parent is sent, unless it is the root."""
        queue = self._unsent
        while queue and (queue[0][2].sent or not queue[0][2].alive):
            heapq.heappop(queue)
        self._take_up(queue)
        return queue[0][2] if queue else None

    def likeliest_unsent(self, count: int) -> list[float]:
        """Log-probabilities of the next `count` nodes that `best_unsent` would give, were each sent in turn."""
        nodes = (node.score for _, _, node in self._unsent if node.alive and not node.sent)
        candidates = (
            _score_below(parent, logprob)
            for _, _, index, parent in self._candidates
            if parent.alive and parent.num_taken == index
            for token, logprob in parent.candidates[index:]
            if token not in parent.children
        )
        return [score - self.root.score for score in heapq.nlargest(count, chain(nodes, candidates))]

    def best_undrafted(self) -> Node | None:
        """The likeliest live node that the draft model has not been given."""
        queue = self._undrafted
        while queue and (queue[0][2].drafted or not queue[0][2].alive):
            heapq.heappop(queue)
        self._take_up(queue)
        return queue[0][2] if queue else None

    def advance(self, token: int) -> Advance:
        """The target decided `token` after the cursor: it becomes the cursor; what is not below it is dead."""
        accepted = self.root
        child = self.child(accepted, token)
        accepted.children.pop(token, None)
        dead = [node for sibling in accepted.children.values() for node in sibling.subtree()]
        for node in dead:
            node.alive = False
            node.parent = None  # no cycle is left, so that the node is freed at once
        self.num_nodes -= len(dead) + 1
        accepted.alive = False
        accepted.children = {}
        foreseen = child is not None
        if child is None:
            child = self._add(token, accepted.position + 1, accepted.score, None, accepted.id)
        child.parent = None
        self.root = child
        self._drop_dead_entries()
        return Advance(accepted, child, foreseen, tuple(dead))

    def forget_drafts(self) -> None:
        """The draft model lost its state: every node must be handed to it again before it proposes more."""
        for node in self.root.subtree():
            node.drafted = node.expanded = False
            node.candidates, node.num_taken = (), 0
        self._candidates.clear()
        self._undrafted = [(-node.score, node.id, node) for node in self.root.subtree()]
        heapq.heapify(self._undrafted)

    def _drop_dead_entries(self) -> None:
        """Queues hold dead entries until they surface; rebuild a queue when most of it is dead."""
        most = 64 + 2 * self.num_nodes
        for queue in (self._unsent, self._undrafted):
            if len(queue) > most:
                queue[:] = [entry for entry in queue if entry[2].alive]
                heapq.heapify(queue)
        if len(self._candidates) > most:
            self._candidates = [entry for entry in self._candidates if entry[3].alive]
            heapq.heapify(self._candidates)

    def check_integrity(self) -> None:
        """Raise `AssertionError` where an invariant of the tree is broken."""
        nodes = list(self.root.subtree())
        unsent = {entry[1] for entry in self._unsent}
        undrafted = {entry[1] for entry in self._undrafted}
        offered = {(parent.id, index) for _, _, index, parent in self._candidates}
        assert len(nodes) == self.num_nodes
        assert self.root.parent is None
        for node in nodes:
            assert node.alive
            assert node.sent or node.id in unsent
            assert node.drafted or node.id in undrafted
            left = [token for token, _ in node.candidates[node.num_taken :] if token not in node.children]
            assert not left or (node.id, node.num_taken) in offered
            for token, child in node.children.items():
                assert child.token == token
                assert child.parent is node
                assert child.parent_id == node.id < child.id
                assert child.position == node.position + 1
                assert child.score <= node.score
                assert node.sent or not child.sent, "a child entered the pipeline before its parent"
