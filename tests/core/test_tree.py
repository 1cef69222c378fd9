"""The prediction tree against a naive model: a set of token paths below the cursor."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipedec.tree import Node, PredictionTree

TOKENS = st.integers(0, 5)
LOGPROBS = st.floats(-20.0, 0.5, allow_nan=False)


class TreeMachine(RuleBasedStateMachine):
    """Grow, draft, send and advance in any order. The naive model keeps `path -> cumulative log-probability` of nodes
    and candidates alike; `nodes` are those that came up so far, found by walking the tree."""

    @initialize(token=TOKENS, position=st.integers(0, 100))
    def plant(self, token: int, position: int) -> None:
        self.tree = PredictionTree(token, position)
        self.scores: dict[tuple[int, ...], float] = {(): 0.0}
        self.expanded: set[tuple[int, ...]] = set()

    @property
    def nodes(self) -> dict[tuple[int, ...], Node]:
        lines = ([node, *node.ancestors()] for node in self.tree.root.subtree())  # up to the root, which is left out
        return {tuple(each.token for each in reversed(line[:-1])): line[0] for line in lines}

    @rule(data=st.data(), proposals=st.lists(st.tuples(TOKENS, LOGPROBS), max_size=4, unique_by=lambda p: p[0]))
    def grow(self, data: st.DataObject, proposals: list[tuple[int, float]]) -> None:
        nodes = self.nodes
        if not (paths := sorted(nodes.keys() - self.expanded)):
            return
        path = data.draw(st.sampled_from(paths))
        self.expanded.add(path)
        self.tree.grow(nodes[path], sorted(proposals, key=lambda p: -p[1]))
        for token, logprob in proposals:
            self.scores.setdefault((*path, token), self.scores[path] + min(logprob, 0.0))
        assert nodes[path].expanded

    @rule(data=st.data(), token=TOKENS, logprob=LOGPROBS)
    def extend(self, data: st.DataObject, token: int, logprob: float) -> None:
        """As the policy does with what the text recalls: what is a candidate by now is left as it is."""
        nodes = self.nodes
        path = data.draw(st.sampled_from(sorted(nodes)))
        known = self.tree.child(nodes[path], token)
        assert (known is not None) == ((*path, token) in self.scores)
        self.scores.setdefault((*path, token), self.scores[path] + min(logprob, 0.0))
        child = known or self.tree.extend(nodes[path], token, logprob)
        assert self.nodes[*path, token] is child

    @rule(data=st.data())
    def ask_for_all_children(self, data: st.DataObject) -> None:
        nodes = self.nodes
        path = data.draw(st.sampled_from(sorted(nodes)))
        expected = {token for *above, token in filter(None, self.scores) if tuple(above) == path}
        assert {node.token for node in self.tree.children(nodes[path])} == expected

    def _best(self, done: Callable[[Node], bool]) -> float | None:
        """The best score of what is not done; a candidate never is."""
        nodes = self.nodes
        left = [score for path, score in self.scores.items() if path not in nodes or not done(nodes[path])]
        return max(left, default=None)

    @rule(count=st.integers(1, 8))
    def look_ahead(self, count: int) -> None:
        nodes = self.nodes
        left = [score for path, score in self.scores.items() if path not in nodes or not nodes[path].sent]
        assert self.tree.likeliest_unsent(count) == pytest.approx(sorted(left, reverse=True)[:count])

    @rule()
    def send_best(self) -> None:
        expected, best = self._best(lambda node: node.sent), self.tree.best_unsent()
        if best is None:
            assert expected is None
            return
        assert self.tree.logprob(best) == pytest.approx(expected)
        assert best is self.tree.root or (best.parent is not None and best.parent.sent)
        best.slot = best.id
        self.tree.mark_sent(best)

    @rule()
    def draft_best(self) -> None:
        expected, best = self._best(lambda node: node.drafted), self.tree.best_undrafted()
        if best is None:
            assert expected is None
            return
        assert self.tree.logprob(best) == pytest.approx(expected)
        best.drafted = True

    @rule()
    def forget_drafts(self) -> None:
        """Candidates go as well: the draft model will propose them again."""
        nodes = self.nodes
        self.tree.forget_drafts()
        self.scores = {path: score for path, score in self.scores.items() if path in nodes}
        self.expanded.clear()

    @precondition(lambda self: self.tree.root.sent)
    @rule(token=TOKENS)
    def advance(self, token: int) -> None:
        old, nodes = self.tree.root, self.nodes
        expected = nodes.get((token,))
        step = self.tree.advance(token)
        assert step.accepted is old
        assert step.foreseen == ((token,) in self.scores)
        assert step.hit == (expected is not None and expected.sent)
        assert {id(node) for node in step.dead} == {
            id(node) for path, node in nodes.items() if path and path[0] != token
        }
        base = self.scores.get((token,), 0.0)
        self.scores = {path[1:]: score - base for path, score in self.scores.items() if path[:1] == (token,)}
        self.scores = self.scores or {(): 0.0}
        self.expanded = {path[1:] for path in self.expanded if path[:1] == (token,)}
        assert self.tree.root.token == token
        assert self.tree.root.parent_id == old.id
        assert self.tree.root.position == old.position + 1

    @invariant()
    def agrees(self) -> None:
        self.tree.check_integrity()
        nodes = self.nodes
        assert len(nodes) == self.tree.num_nodes
        assert nodes.keys() <= self.scores.keys()
        for path, node in nodes.items():
            assert self.tree.logprob(node) == pytest.approx(self.scores[path])
        sent = [node for node in nodes.values() if node.sent]
        deepest = max((node.position for node in sent), default=None)
        newest = {id(node) for node in sent if node.position == deepest}
        assert {id(node) for node in self.tree.newest_level()} == newest


TestTree = TreeMachine.TestCase


def test_a_dead_parent_grows_nothing() -> None:
    tree = PredictionTree(token=1, position=0)
    tree.grow(tree.root, [(2, -1.0)])
    (child,) = tree.children(tree.root)
    tree.root.slot = 0
    tree.mark_sent(tree.root)
    tree.advance(3)
    tree.grow(child, [(4, -1.0)])
    assert not child.candidates
    assert tree.best_unsent() is tree.root
    tree.check_integrity()


def test_only_what_comes_up_becomes_a_node() -> None:
    tree = PredictionTree(token=1, position=0)
    tree.mark_sent(tree.root)
    tree.grow(tree.root, [(token, -float(token)) for token in range(1, 17)])
    for expected in (1, 2, 3):
        best = tree.best_unsent()
        assert best is not None
        assert best.token == expected
        tree.mark_sent(best)
    assert tree.num_nodes == 4
    assert tree.likeliest_unsent(2) == [-4.0, -5.0]
    assert tree.advance(16).foreseen


def test_a_child_never_outranks_its_parent() -> None:
    tree = PredictionTree(token=1, position=0)
    tree.grow(tree.root, [(2, 1e-7)])
    (child,) = tree.children(tree.root)
    assert child.score == tree.root.score
    assert tree.best_unsent() is tree.root
