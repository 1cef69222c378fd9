"""The prediction tree against a naive model: a set of token paths below the cursor."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pipedec.tree import Node, PredictionTree

TOKENS = st.integers(0, 5)
LOGPROBS = st.floats(-20.0, 0.5, allow_nan=False)


class TreeMachine(RuleBasedStateMachine):
    """Grow, draft, send and advance in any order; the naive model keeps `path -> cumulative log-probability`."""

    @initialize(token=TOKENS, position=st.integers(0, 100))
    def plant(self, token: int, position: int) -> None:
        self.tree = PredictionTree(token, position)
        self.nodes: dict[tuple[int, ...], Node] = {(): self.tree.root}
        self.scores: dict[tuple[int, ...], float] = {(): 0.0}

    @rule(data=st.data(), proposals=st.lists(st.tuples(TOKENS, LOGPROBS), max_size=4, unique_by=lambda p: p[0]))
    def grow(self, data: st.DataObject, proposals: list[tuple[int, float]]) -> None:
        path = data.draw(st.sampled_from(sorted(self.nodes)))
        new = {token: logprob for token, logprob in proposals if (*path, token) not in self.nodes}
        grown = self.tree.grow(self.nodes[path], proposals)
        assert [node.token for node in grown] == list(new)
        for node in grown:
            self.nodes[*path, node.token] = node
            self.scores[*path, node.token] = self.scores[path] + min(new[node.token], 0.0)
        assert self.nodes[path].expanded

    @rule()
    def send_best(self) -> None:
        unsent = [path for path, node in self.nodes.items() if not node.sent]
        best = self.tree.best_unsent()
        if best is None:
            assert not unsent
            return
        assert self.tree.logprob(best) == pytest.approx(max(self.scores[path] for path in unsent))
        best.slot = best.id
        self.tree.mark_sent(best)

    @rule()
    def draft_best(self) -> None:
        undrafted = [path for path, node in self.nodes.items() if not node.drafted]
        best = self.tree.best_undrafted()
        if best is None:
            assert not undrafted
            return
        assert self.tree.logprob(best) == pytest.approx(max(self.scores[path] for path in undrafted))
        best.drafted = True

    @rule()
    def forget_drafts(self) -> None:
        self.tree.forget_drafts()

    @precondition(lambda self: self.tree.root.sent)
    @rule(token=TOKENS)
    def advance(self, token: int) -> None:
        old = self.tree.root
        expected = self.nodes.get((token,))
        step = self.tree.advance(token)
        survivors = {path: node for path, node in self.nodes.items() if path[:1] == (token,)}
        assert step.accepted is old
        assert step.foreseen == (expected is not None)
        assert step.hit == (expected is not None and expected.sent)
        assert {id(node) for node in step.dead} == {
            id(node) for path, node in self.nodes.items() if path and path not in survivors
        }
        if expected is None:
            self.nodes, self.scores = {(): step.cursor}, {(): 0.0}
        else:
            base = self.scores[(token,)]
            self.nodes = {path[1:]: node for path, node in survivors.items()}
            self.scores = {path: self.scores[(token, *path)] - base for path in self.nodes}
        assert self.tree.root is self.nodes[()]
        assert self.tree.root.parent_id == old.id
        assert self.tree.root.position == old.position + 1

    @invariant()
    def agrees(self) -> None:
        self.tree.check_integrity()
        assert {id(node) for node in self.tree.root.subtree()} == {id(node) for node in self.nodes.values()}
        sent = [node for node in self.nodes.values() if node.sent]
        deepest = max((node.position for node in sent), default=None)
        newest = {id(node) for node in sent if node.position == deepest}
        assert {id(node) for node in self.tree.newest_level()} == newest


TestTree = TreeMachine.TestCase


def test_a_dead_parent_grows_nothing() -> None:
    tree = PredictionTree(token=1, position=0)
    (child,) = tree.grow(tree.root, [(2, -1.0)])
    tree.root.slot = 0
    tree.mark_sent(tree.root)
    tree.advance(3)
    assert tree.grow(child, [(4, -1.0)]) == []
    tree.check_integrity()


def test_a_child_never_outranks_its_parent() -> None:
    tree = PredictionTree(token=1, position=0)
    (child,) = tree.grow(tree.root, [(2, 1e-7)])
    assert child.score == tree.root.score
    assert tree.best_unsent() is tree.root
