"""The kernel that ranks a draft's tokens gives what torch does."""

from __future__ import annotations

import pytest
import torch

from pipedec.model.triton_likeliest import PIECE, likeliest

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    ("vocabulary", "count"), [(20, 1), (20, 16), (PIECE, 5), (2 * PIECE + 77, 16), (2 * PIECE + 77, 64)]
)
def test_equal_to_torch(vocabulary: int, count: int) -> None:
    logits = 5 * torch.randn(3, vocabulary, generator=torch.Generator().manual_seed(count)).to(DEVICE)
    logits[1, :3] = float("-inf")
    logits[2] -= 100  # all negative
    tokens, logprobs = likeliest(logits, count)
    expected = logits.topk(count)
    assert torch.equal(tokens, expected.indices)
    torch.testing.assert_close(logprobs, expected.values - logits.logsumexp(-1, keepdim=True))


def test_of_equals_the_lower_token() -> None:
    logits = torch.zeros(1, 2 * PIECE, device=DEVICE)
    logits[0, [9, PIECE + 1]] = 1.0
    assert likeliest(logits, 4)[0].tolist() == [[9, PIECE + 1, 0, 1]]


def test_a_nan_spoils_its_row_and_no_other() -> None:
    logits = torch.randn(2, PIECE + 5, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    logits[0, PIECE + 2] = float("nan")
    _, logprobs = likeliest(logits, 3)
    assert logprobs[0].isnan().all()
    assert logprobs[1].isfinite().all()


def test_no_rows() -> None:
    tokens, logprobs = likeliest(torch.empty(0, 50, device=DEVICE), 3)
    assert tokens.shape == logprobs.shape == (0, 3)


def test_a_piece_without_a_finite_number_weighs_nothing() -> None:
    logits = torch.full((1, 2 * PIECE), float("-inf"), device=DEVICE)
    logits[0, 5:7] = -200.0
    tokens, logprobs = likeliest(logits, 2)
    assert tokens.tolist() == [[5, 6]]
    torch.testing.assert_close(logprobs.exp(), torch.full_like(logprobs, 0.5))
