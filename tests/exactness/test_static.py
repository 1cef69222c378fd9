"""Programs of fixed shape say what the target alone says, whatever they are padded to and their memory held before."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipedec.model.execution import BUCKETS, Execution
from pipedec.policy import PolicyName
from tests.exactness.pipelines import POLICIES, SAMPLED, expected, load, run
from tests.tiny import tiny_model

FEW = Execution("dense", (1, 2, 4))  # larger batches are run without a program, between those with one
ALL = Execution("dense", BUCKETS)
FIXED = Execution("dense", (32,))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("llama"), layers=5)


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_equals_generate(llama: Path, policy: PolicyName) -> None:
    requests = load(2, seed=1)
    assert run(llama, policy, 2, "right", requests, ALL) == expected(llama, requests)


@pytest.mark.parametrize("execution", [FEW, FIXED], ids=str)
def test_any_buckets_equal_generate(llama: Path, execution: Execution) -> None:
    requests = load(3, seed=1)
    assert run(llama, "adaptive", 3, "noisy", requests, execution) == expected(llama, requests)


def test_many_requests_of_sampled_tokens(llama: Path) -> None:
    requests = load(4, seed=2, sampling=SAMPLED)
    alone = run(llama, "none", 1, "", requests)
    assert run(llama, "adaptive", 2, "noisy", requests, ALL) == alone


def test_sliding_windows_equal_generate(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path, "mistral", layers=3, sliding_window=12)
    requests = load(1, seed=3)
    assert run(folder, "pipedec", 2, "right", requests, ALL) == expected(folder, requests)
