"""On a CPU a pipeline says the same in any precision, however near two tokens are: its numbers are the same bits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pipedec.model.execution import Execution
from pipedec.model.packed import packable_dtypes
from pipedec.policy import PolicyName
from pipedec.sampling_params import SamplingParams
from tests.exactness.pipelines import POLICIES, SAMPLED, expected, load, run, run_again
from tests.tiny import tiny_model

DTYPES = sorted(packable_dtypes(), key=str)


@pytest.fixture(scope="module")
def even(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model to which many tokens are nearly as likely, wide enough that sums of one row could go another way."""
    return tiny_model(tmp_path_factory.mktemp("even"), hidden=768, heads=6, layers=3, spread=0.02)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("llama"), layers=4)


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_neither_policy_nor_stages_nor_company_change_a_token(
    even: Path, dtype: torch.dtype, sampling: SamplingParams
) -> None:
    requests = {key: replace(request, max_tokens=16) for key, request in load(4, seed=1, sampling=sampling).items()}
    alone: dict[int, list[int]] = {}
    for key, request in requests.items():
        alone |= run(even, "none", 1, "", {key: request}, dtype=dtype)
    for policy, stages, chunk in zip(POLICIES, (2, 3, 1, 3), (5, 64, 16, 7), strict=True):
        assert run(even, policy, stages, "noisy", requests, dtype=dtype, prefill_chunk=chunk) == alone


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_lost_formation_changes_no_token(even: Path, dtype: torch.dtype) -> None:
    """What had been said is then prefilled, in one chunk what came one by one."""
    requests = {key: replace(request, max_tokens=24) for key, request in load(3, seed=5).items()}
    alone = run(even, "none", 1, "", requests, dtype=dtype)
    assert run_again(even, requests, steps=60, prefill_chunk=64, dtype=dtype) == alone


@pytest.mark.parametrize("policy", POLICIES)
def test_without_packed_sums_float32_still_says_what_the_target_says(llama: Path, policy: PolicyName) -> None:
    """As on a processor for which PyTorch has no such sums."""
    requests = load(3, seed=2)
    assert run(llama, policy, 3, "noisy", requests, Execution("sdpa")) == expected(llama, requests)
