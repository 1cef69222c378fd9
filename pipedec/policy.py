"""Which predicted tokens enter the pipeline next, and which the draft model evaluates next. Pure.

Four policies, compared with one another in one run of the benchmarks:

* `none`         plain pipeline parallelism: only certain tokens travel.
* `static-tree`  draft a tree, verify it in one pass, repeat: the paper's baseline, tree speculation on a pipeline.
* `pipedec`      the paper (arXiv 2504.04104): at every step the newest level is extended by one.
* `adaptive`     ours: best first over all depths, late siblings and several levels per step included.

A policy chooses among predictions only. Certain tokens (a prompt, a cursor that is not in the pipeline) always go
first and are not asked about, except that a policy may *hold* a cursor until its tree is drafted.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, takewhile, zip_longest
from operator import itemgetter
from typing import Protocol, TypeAlias

from pipedec import spec
from pipedec.calibration import Calibration
from pipedec.cost import Cost, flat_cost
from pipedec.proposals import Children, Proposals
from pipedec.recall import Match, MatchRates, Recall
from pipedec.tree import Node, PredictionTree

PolicyName: TypeAlias = spec.Policy
Choice = tuple[PredictionTree, Node]
Forced = Callable[[], Sequence[int]]  # the tokens that alone can come next, if there is no choice

WIDTH = 32  # of a level, unless said otherwise
MAX_ROWS = 256  # of one batch of `adaptive`
DRAFT_ROWS = 64  # of one run of the draft model
DRAFT_FLOOR = 3e-3  # nodes less likely than this are not drafted,
CHILD_FLOOR = math.log(1e-2)  # and children less likely, after their parent, are not kept: they would never be sent
ROUNDING = 1e-6  # by which times that rise evenly may seem to rise less
MAX_FORCED = 1024  # tokens that alone can come next: about as many as are ever in flight
MAX_NODES = 4096  # of one tree, beyond which the draft model rests


class Policy(Protocol):
    """`children` is how many children the draft model proposes for a node; 0 means that no draft model is used."""

    children: int

    def holds(self, tree: PredictionTree) -> bool:
        """Whether the cursor, not sent yet, shall wait for its tree to be drafted."""

    def to_send(self, trees: Sequence[PredictionTree]) -> Iterator[Choice]:
        """Predictions for the next batch, in order. Each is marked sent by the caller, who may stop at any point,
        before the next is asked for; so is every cursor that is due."""

    def to_draft(self, trees: Sequence[PredictionTree]) -> Iterator[Choice]:
        """Nodes for the draft model's next run, in order; each is marked drafted by the caller, likewise."""

    def judge(self, proposals: Proposals) -> Sequence[Children]:
        """What becomes of the draft model's proposals, row by row: how likely they are, and which are worth keeping."""

    def recall(self, tree: PredictionTree, text: Recall, least: int, last: int, forced: Forced) -> None:
        """Put into the tree, once for each cursor, what is `forced` after it, and what followed at least `least`
        newest tokens before; no node lies beyond position `last`."""

    def observe(self, cursor: Node, token: int) -> None:
        """The target decided `token` after the cursor."""


class _PlainPolicy:
    """Takes the draft model's proposals as they are."""

    def judge(self, proposals: Proposals) -> Sequence[Children]:
        return list(proposals)

    def recall(self, tree: PredictionTree, text: Recall, least: int, last: int, forced: Forced) -> None:
        pass

    def observe(self, cursor: Node, token: int) -> None:
        pass


class NonePolicy(_PlainPolicy):
    """Plain pipeline parallelism."""

    children = 0

    def holds(self, tree: PredictionTree) -> bool:
        return False

    def to_send(self, trees: Sequence[PredictionTree]) -> Iterator[Choice]:
        return iter(())

    def to_draft(self, trees: Sequence[PredictionTree]) -> Iterator[Choice]:
        return iter(())


class PipeDecPolicy(_PlainPolicy):
    """The paper's: each step the newest level's likeliest `width` children, at most `children` of each node."""

    def __init__(self, width: int, children: int) -> None:
        self.width, self.children = width, children

    def holds(self, tree: PredictionTree) -> bool:
        return False

    def to_send(self, trees: Sequence[PredictionTree]) -> Iterator[Choice]:
        return _in_turn(trees, self._next_level)

    def to_draft(self, trees: Sequence[PredictionTree]) -> Iterator[Choice]:
        return _in_turn(trees, lambda tree: [node for node in tree.newest_level() or [tree.root] if not node.drafted])

    def _next_level(self, tree: PredictionTree) -> list[Node]:
        candidates = (child for node in tree.newest_level() for child in tree.children(node))
        return heapq.nlargest(self.width, candidates, key=_rank)


class StaticTreePolicy(_PlainPolicy):
    """Tree speculation: `depth` levels of at most `width` nodes are drafted first, then verified in one pass."""

    def __init__(self, width: int, children: int, depth: int) -> None:
        self.width, self.children, self.depth = width, children, depth

    def _levels(self, tree: PredictionTree) -> list[list[Node]]:
        """The cursor, then the levels below it as far as they are proposed."""
        levels = [[tree.root]]
        while len(levels) <= self.depth:
            candidates = (child for node in levels[-1] for child in tree.children(node))
            level = heapq.nlargest(self.width, candidates, key=_rank)
            if not level:
                break
            levels.append(level)
        return levels

    def _is_growing(self, levels: list[list[Node]]) -> bool:
        return len(levels) <= self.depth and not all(node.expanded for node in levels[-1])

    def holds(self, tree: PredictionTree) -> bool:
        return self._is_growing(self._levels(tree))

    def to_send(self, trees: Sequence[PredictionTree]) -> Iterator[Choice]:
        return _in_turn(trees, self._whole)

    def to_draft(self, trees: Sequence[PredictionTree]) -> Iterator[Choice]:
        return _in_turn(trees, self._growing)

    def _whole(self, tree: PredictionTree) -> list[Node]:
        if tree.newest_level() != [tree.root]:
            return []
        return [node for level in self._levels(tree)[1:] for node in level]

    def _growing(self, tree: PredictionTree) -> list[Node]:
        levels = self._levels(tree)
        if tree.root.sent or not self._is_growing(levels):
            return []
        return [node for node in levels[-1] if not node.drafted]


class AdaptivePolicy:
    """Best first over all depths and all requests, as many predictions per batch as they are worth.

    `cost(rows)` is a stage's time for a batch, in any unit. The next likeliest prediction is added as long as it
    adds more, relative to the tokens already expected of the batch, than it adds to the time; or as long as those
    after it make up for it, where time rises in steps. `width` is a limit. `draft_cost(rows)` is the draft model's
    time, and rules its runs in the same way: where rows cost it time, it drafts few of them and soon goes deeper.
    """

    def __init__(self, width: int | None, children: int, cost: Cost, draft_cost: Cost) -> None:
        self.width, self.children, self.cost, self.draft_cost = width or MAX_ROWS, children, cost, draft_cost
        self._calibration = Calibration()
        self._match_rates = MatchRates()

    def holds(self, tree: PredictionTree) -> bool:
        return False

    def to_send(self, trees: Sequence[PredictionTree]) -> Iterator[Choice]:
        expected = float(len(trees))  # tokens: each cursor decides one
        seconds, agreed = self.cost(len(trees)), 0
        for rows, (tree, node) in enumerate(best_first(trees, PredictionTree.best_unsent), len(trees) + 1):
            probability, longer = math.exp(tree.logprob(node)), self.cost(rows)
            if rows > self.width + len(trees):
                break
            if rows > agreed and not _pays(probability, longer - seconds, expected, seconds):
                agreed = self._look_ahead(trees, rows - 1, expected)
                if rows > agreed:
                    break
            expected, seconds = expected + probability, longer
            yield tree, node

    def _look_ahead(self, trees: Sequence[PredictionTree], rows: int, expected: float) -> int:
        """The number of rows that gives most tokens per time: the `rows` that there are by now, or more."""
        most = self.width + len(trees) - rows
        seconds = self.cost(rows)
        step = (self.cost(rows + 1) - seconds) * (1 - ROUNDING)
        further = takewhile(lambda more: more <= most, (2**power for power in range(1, 10)))
        if all(self.cost(rows + more) - seconds >= more * step for more in further):
            return rows  # each row costs as much as the next one, or less: likelier ones did not pay, nor will others
        left = heapq.merge(*(tree.likeliest_unsent(most) for tree in trees), reverse=True)
        best, best_rate = rows, expected / seconds
        for more, logprob in enumerate(islice(left, most), rows + 1):
            expected += math.exp(logprob)
            if (rate := expected / self.cost(more)) > best_rate:
                best, best_rate = more, rate
        return best

    def to_draft(self, trees: Sequence[PredictionTree]) -> Iterator[Choice]:
        growing = [tree for tree in trees if tree.num_nodes < MAX_NODES]
        expected = seconds = 0.0  # how many of these nodes become cursors, and the time for them
        likeliest = best_first(growing, PredictionTree.best_undrafted)
        for rows, (tree, node) in enumerate(islice(likeliest, DRAFT_ROWS), 1):
            probability, longer = math.exp(tree.logprob(node)), self.draft_cost(rows)
            if probability < DRAFT_FLOOR or not _pays(probability, longer - seconds, expected, seconds):
                break
            expected, seconds = expected + probability, longer
            yield tree, node

    def judge(self, proposals: Proposals) -> Sequence[Children]:
        calibrated = self._calibration(proposals.logprobs)
        kept = calibrated > CHILD_FLOOR
        pairs = zip(proposals.tokens[kept].tolist(), calibrated[kept].tolist(), strict=True)
        rows = [list(islice(pairs, count)) for count in kept.sum(-1).tolist()]
        for children in rows:
            children.sort(key=itemgetter(1), reverse=True)  # calibrated, they may have changed places
        return rows

    def recall(self, tree: PredictionTree, text: Recall, least: int, last: int, forced: Forced) -> None:
        cursor = tree.root
        if cursor.recalled is not None:
            return
        cursor.recalled = text.matches()
        node, only = cursor, forced()
        for token in only[: min(MAX_FORCED, last - cursor.position)]:
            node = tree.extend(node, token, 0.0)
        for rank, match in enumerate(cursor.recalled):
            if match.length >= least and (not only or match.tokens[0] == only[0]):
                self._follow(tree, match, rank, last)

    def _follow(self, tree: PredictionTree, match: Match, rank: int, last: int) -> None:
        node = tree.root
        for length, token in enumerate(match.tokens[: last - node.position], match.length):
            logprob = self._match_rates.logprob(length, rank if node is tree.root else 0)
            if (known := tree.child(node, token)) is None and tree.logprob(node) + logprob < CHILD_FLOOR:
                break
            node = known or tree.extend(node, token, logprob)

    def observe(self, cursor: Node, token: int) -> None:
        if cursor.proposed is not None:
            proposals, row = cursor.proposed
            self._calibration.observe(proposals[row], token)
        if cursor.recalled:
            self._match_rates.observe(cursor.recalled, token)


def best_first(trees: Sequence[PredictionTree], peek: Callable[[PredictionTree], Node | None]) -> Iterator[Choice]:
    """The likeliest node of all trees, then the next, ... `peek` gives a tree's best; a node that the caller leaves
    where it is ends that tree's turn."""
    heap = []
    for index, tree in enumerate(trees):
        if (node := peek(tree)) is not None:
            heap.append((-tree.logprob(node), index, node))
    heapq.heapify(heap)
    while heap:
        _, index, node = heapq.heappop(heap)
        tree = trees[index]
        yield tree, node
        following = peek(tree)
        if following is not None and following is not node:
            heapq.heappush(heap, (-tree.logprob(following), index, following))


def _in_turn(trees: Sequence[PredictionTree], nodes: Callable[[PredictionTree], Sequence[Node]]) -> Iterator[Choice]:
    """The first node of each tree, then the second of each, ...: where room ends, it ends for all alike."""
    for turn in zip_longest(*map(nodes, trees)):
        yield from ((tree, node) for tree, node in zip(trees, turn, strict=True) if node is not None)


def _pays(probability: float, more: float, expected: float, seconds: float) -> bool:
    """Whether a row adds no less to the tokens `expected`, in proportion, than `more` seconds to the time."""
    return probability * seconds >= expected * more


def _rank(node: Node) -> tuple[float, int]:
    return node.score, -node.id


def make_policy(
    name: PolicyName,
    *,
    width: int | None = None,
    children: int = 16,
    depth: int = 4,
    cost: Cost = flat_cost,
    draft_cost: Cost = flat_cost,
) -> Policy:
    """The policy of that name. `width`: predictions per level (by default 32), of `adaptive` at most per batch (by
    default as many as pay by `cost`, a stage's and the draft's own); `children`: proposals per node; `depth`: levels of
    a static tree."""
    match name:
        case "none":
            return NonePolicy()
        case "static-tree":
            return StaticTreePolicy(width or WIDTH, children, depth)
        case "pipedec":
            return PipeDecPolicy(width or WIDTH, children)
        case "adaptive":
            return AdaptivePolicy(width, children, cost, draft_cost)
