"""What each policy sends and drafts, on trees made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from pipedec.policy import MAX_FORCED, Policy, PolicyName, make_policy
from pipedec.proposals import Proposals
from pipedec.recall import SHORTEST, SURE, Recall
from pipedec.tree import Node, PredictionTree


def tree_of(*proposals: tuple[int, float]) -> PredictionTree:
    """A tree whose cursor is in the pipeline, with children of these probabilities."""
    tree = PredictionTree(0, 0)
    tree.mark_sent(tree.root)
    tree.grow(tree.root, [(token, math.log(probability)) for token, probability in proposals])
    return tree


def child(tree: PredictionTree, token: int) -> Node:
    """The cursor's child."""
    found = tree.child(tree.root, token)
    assert found is not None
    return found


def send(policy: Policy, *trees: PredictionTree) -> list[tuple[int, int]]:
    sent = []
    for tree, node in policy.to_send(trees):
        tree.mark_sent(node)
        sent.append((trees.index(tree), node.token))
    return sent


def test_adaptive_shares_a_batch_by_likelihood_across_depths_and_requests() -> None:
    first, second = tree_of((1, 0.6), (2, 0.3)), tree_of((3, 0.9), (4, 0.02))
    first.grow(child(first, 1), [(5, math.log(0.8))])  # 0.48 from its cursor
    assert send(make_policy("adaptive", width=4), first, second) == [(1, 3), (0, 1), (0, 5), (0, 2)]


@pytest.mark.parametrize("name", ["static-tree", "pipedec"])
def test_where_room_ends_it_ends_for_all_requests_alike(name: PolicyName) -> None:
    trees = [tree_of((token, 0.5), (token + 1, 0.3), (token + 2, 0.1)) for token in (1, 11, 21)]
    chosen = [(trees.index(tree), node.token) for tree, node in make_policy(name, width=3, depth=1).to_send(trees)]
    assert chosen == [(0, 1), (1, 11), (2, 21), (0, 2), (1, 12), (2, 22), (0, 3), (1, 13), (2, 23)]


@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (lambda rows: 1.0, [1, 2, 3]),  # free: everything
        (lambda rows: float(rows), []),  # a row costs as much as the cursor, and is worth less
        (lambda rows: 1.0 + 0.2 * (rows - 1), [1, 2]),  # 0.1 is not worth 0.2 / 1.4 of 1.9 tokens
    ],
)
def test_adaptive_sends_what_is_worth_its_time(cost: Callable[[int], float], expected: list[int]) -> None:
    tree = tree_of((1, 0.5), (2, 0.4), (3, 0.1))
    assert [token for _, token in send(make_policy("adaptive", cost=cost), tree)] == expected


def test_adaptive_takes_a_step_in_time_that_rows_beyond_it_are_worth() -> None:
    def cost(rows: int) -> float:  # a device with programs for 1, 4 and 8 rows
        return 1.0 if rows == 1 else 1.7 if rows <= 4 else 2.4

    tree = tree_of((1, 0.5), (2, 0.3))
    tree.grow(child(tree, 1), [(4, math.log(0.8)), (5, math.log(0.05))])
    assert send(make_policy("adaptive", cost=cost), tree) == [(0, 1), (0, 4), (0, 2)], "2.2 tokens in 1.7, not 1 in 1"
    assert not send(make_policy("adaptive", width=1, cost=cost), tree_of((1, 0.5)))
    assert not send(make_policy("adaptive", cost=cost), tree_of((1, 0.4), (2, 0.1)))
    both = tree_of((1, 0.8)), tree_of((3, 0.9))
    assert send(make_policy("adaptive", cost=lambda rows: cost(rows - 1)), *both) == [(1, 3), (0, 1)]


def test_adaptive_drops_hopeless_children() -> None:
    likely, hopeless, none = (1, math.log(0.9)), (2, math.log(0.001)), []
    judged = make_policy("adaptive").judge(Proposals.of([[likely, hopeless], [hopeless], none]))
    assert [[token for token, _ in children] for children in judged] == [[1], [], []]


def test_adaptive_ranks_children_by_what_came_true() -> None:
    """A draft that says 0.5 and means never, and says 0.4 and means mostly."""
    policy, proposals = make_policy("adaptive"), Proposals.of([[(1, math.log(0.5)), (2, math.log(0.3))]])
    for _ in range(50):
        cursor = PredictionTree(0, 0).root
        cursor.proposed = (proposals, 0)
        policy.observe(cursor, 2)
    ((best, second),) = policy.judge(proposals)
    assert (best[0], second[0]) == (2, 1)
    assert best[1] > math.log(0.8)


def test_the_papers_policy_extends_the_newest_level() -> None:
    tree = tree_of((1, 0.6), (2, 0.3))
    policy = make_policy("pipedec", width=1)
    assert send(policy, tree) == [(0, 1)]
    tree.grow(child(tree, 1), [(3, math.log(0.1))])
    assert send(policy, tree) == [(0, 3)], "not the likelier sibling of the level before"


@pytest.mark.parametrize(
    ("draft_cost", "expected"),
    [
        (lambda rows: 1.0, [[1, 2, 3]]),  # free: everything
        (lambda rows: 1.0 + 0.3 * (rows - 1), [[1, 2], [3]]),  # 0.1 can wait: what is below 0.6 cannot
        (lambda rows: float(rows), [[1], [2], [3]]),
    ],
)
def test_adaptive_drafts_few_nodes_at_once_where_they_cost_the_draft_time(
    draft_cost: Callable[[int], float], expected: list[list[int]]
) -> None:
    policy, tree = make_policy("adaptive", draft_cost=draft_cost), tree_of((1, 0.6), (2, 0.3), (3, 0.1))
    tree.root.drafted = True
    runs: list[list[int]] = []
    for _ in expected:
        runs.append([])
        for _, node in policy.to_draft([tree]):
            node.drafted = True
            runs[-1].append(node.token)
    assert runs == expected
    assert not list(policy.to_draft([tree]))


def test_adaptive_sends_what_the_text_recalls_without_any_draft() -> None:
    policy, text = make_policy("adaptive"), [1, 2, 3, 4, 9, 1, 2]
    tree = PredictionTree(2, 6)
    tree.mark_sent(tree.root)
    policy.recall(tree, Recall(text), SHORTEST, last=8, forced=tuple)
    assert send(policy, tree) == [(0, 3), (0, 4)]  # nothing beyond the last position


def test_a_short_match_is_no_match_beside_a_draft_but_is_learnt_from() -> None:
    policy, text = make_policy("adaptive"), [1, 2, 3, 4, 9, 1, 2]
    for _ in range(50):
        tree = PredictionTree(2, 6)
        policy.recall(tree, Recall(text), SURE, last=100, forced=tuple)
        assert tree.num_nodes == 1
        policy.observe(tree.root, 7)
    policy.recall(tree := PredictionTree(2, 6), Recall(text), SHORTEST, last=100, forced=tuple)
    assert math.exp(tree.logprob(child(tree, 3))) < 0.05


def test_what_the_draft_said_before_is_left_as_it_is() -> None:
    tree = tree_of((3, 0.2))
    make_policy("adaptive").recall(tree, Recall([1, 2, 3, 4, 9, 1, 2]), SHORTEST, last=100, forced=tuple)
    known = child(tree, 3)
    assert math.exp(tree.logprob(known)) == pytest.approx(0.2)
    assert list(known.children) == [4]
    tree.check_integrity()


def test_what_is_forced_is_certain_and_outranks_what_the_text_recalls() -> None:
    """After 1 2 came 3 before; now only 5 6 7 can, of which 7 would lie beyond the last position."""
    tree, policy = PredictionTree(2, 6), make_policy("adaptive")
    text = Recall([1, 2, 3, 4, 9, 1, 2])
    policy.recall(tree, text, SHORTEST, last=8, forced=lambda: (5, 6, 7))
    sent = [(node.token, tree.logprob(node)) for node in tree.root.subtree() if node is not tree.root]
    assert sent == [(5, 0.0), (6, 0.0)]
    policy.recall(tree, text, SHORTEST, last=8, forced=lambda: pytest.fail("asked again for the same cursor"))


def test_of_a_long_forced_text_only_so_much_is_foreseen() -> None:
    """Each cursor looks through all of it, and nobody else's is looked at meanwhile."""
    tree, policy, text = PredictionTree(0, 0), make_policy("adaptive"), Recall([0])
    forced = range(1, 10 * MAX_FORCED)
    for token in forced[:3]:
        policy.recall(tree, text, SHORTEST, last=10**6, forced=lambda: forced[tree.root.position :])
        assert tree.num_nodes == MAX_FORCED + 1
        assert tree.advance(token).foreseen


def test_what_the_text_recalls_of_a_forced_beginning_goes_on() -> None:
    tree = PredictionTree(2, 6)
    make_policy("adaptive").recall(tree, Recall([1, 2, 3, 4, 9, 1, 2]), SHORTEST, last=100, forced=lambda: (3,))
    assert [node.token for node in tree.root.subtree()][:3] == [2, 3, 4]
