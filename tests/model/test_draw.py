"""The kernel that draws tokens draws those that torch's operators draw."""

from __future__ import annotations

import pytest
import torch

from pipedec.model.sampling import perturbed, state_of
from pipedec.model.triton_draw import PIECE, draw

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def signed(states: list[int]) -> torch.Tensor:
    return torch.tensor([state - 2**64 if state >= 2**63 else state for state in states], device=DEVICE)


@pytest.mark.parametrize("vocabulary", [3, PIECE, 2 * PIECE + 77])
def test_equal_to_torch(vocabulary: int) -> None:
    scores = 2 * torch.randn(40, vocabulary, generator=torch.Generator().manual_seed(vocabulary))
    scores[::2, 1:-1] = float("-inf")  # as top-k leaves it
    states = [state_of(seed * (2**63 - 1) // 39, 1000 + seed) for seed in range(40)]
    values, tokens = draw(scores.to(DEVICE), signed(states))
    expected = [perturbed(row, state).max(0) for row, state in zip(scores, states, strict=True)]
    assert tokens.tolist() == [int(each.indices) for each in expected]
    torch.testing.assert_close(values.cpu(), torch.stack([each.values for each in expected]), rtol=1e-12, atol=1e-12)


def test_where_no_token_is_left_the_best_says_so() -> None:
    scores = torch.full((2, PIECE + 5), float("-inf"), device=DEVICE)
    scores[1, PIECE + 2] = -1e30
    values, tokens = draw(scores, signed([1, 2]))
    assert values.tolist()[0] == float("-inf")
    assert tokens.tolist()[1] == PIECE + 2
