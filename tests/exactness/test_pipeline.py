"""Real models on the simulated clock: what a pipeline says is what the target alone says, token for token."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.local import build_stages
from benchmarks.simulation import Simulation
from draft_service.schedule.scheduler import Limits, Scheduler
from pipedec.policy import PolicyName, make_policy
from pipedec.sampling_params import SamplingParams
from tests.exactness.drafts import KINDS, make_draft
from tests.exactness.pipelines import NUM_SLOTS, POLICIES, SAMPLED, expected, load, run, run_again
from tests.tiny import tiny_model

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "olmo2", "phi3")


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny random model of each family, with five layers so that five stages fit."""
    folder = tmp_path_factory.mktemp("models")
    return {family: tiny_model(folder / family, family, layers=5) for family in FAMILIES}


@pytest.mark.parametrize("policy", POLICIES)
def test_greedy_equals_generate(models: dict[str, Path], policy: PolicyName) -> None:
    requests = load(2, seed=1)
    for stages, kind in ((1, "noisy"), (2, "right"), (3, "wrong"), (5, "noisy")):
        assert run(models["llama"], policy, stages, kind, requests) == expected(models["llama"], requests)


@pytest.mark.parametrize("policy", ["none", "adaptive"])
@pytest.mark.parametrize("family", FAMILIES[1:])
def test_every_family_equals_generate(models: dict[str, Path], family: str, policy: PolicyName) -> None:
    """Its layers see no more of a policy than trees, or none."""
    requests = load(2, seed=1)
    for stages in (1, 5):
        assert run(models[family], policy, stages, "noisy", requests) == expected(models[family], requests)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", POLICIES[1:])
def test_every_draft_with_one_request_and_many(models: dict[str, Path], policy: PolicyName, kind: str) -> None:
    for count in (1, 6) if policy == "adaptive" else (6,):
        requests = load(count, seed=2)
        assert run(models["llama"], policy, 3, kind, requests) == expected(models["llama"], requests)


def test_scarce_slots_put_requests_back(models: dict[str, Path]) -> None:
    """Six requests that need 380 slots share 80: they wait, are preempted, resume, and still say the same."""
    requests = load(6, seed=3)
    scheduler = Scheduler(Limits(3, poison=True, prefill_chunk=8), make_policy("adaptive", width=8, children=4))
    simulation = Simulation(
        scheduler, build_stages(models["llama"], 3, 80), make_draft("noisy", models["llama"], 80), 80
    )
    generated = simulation.run(requests)
    assert scheduler.counts.preemptions > 0
    assert {key: generated[key].tokens for key in requests} == expected(models["llama"], requests)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_sampled_output_does_not_depend_on_speculation(models: dict[str, Path], family: str) -> None:
    requests = load(3, seed=4, sampling=SAMPLED)
    alone = run(models[family], "none", 1, "", requests)
    assert len({tuple(tokens) for tokens in alone.values()}) == 3
    for policy, stages in zip(POLICIES, (3, 2, 3, 2), strict=True):
        assert run(models[family], policy, stages, "noisy", requests) == alone


def test_a_lost_formation_changes_no_token(models: dict[str, Path]) -> None:
    requests = load(4, seed=5, sampling=SAMPLED)
    alone = run(models["llama"], "none", 1, "", requests)
    assert run_again(models["llama"], requests, steps=120, prefill_chunk=8) == alone


@pytest.mark.parametrize("sampling", [SamplingParams(), SAMPLED], ids=["greedy", "sampled"])
def test_what_the_text_recalls_changes_no_token(models: dict[str, Path], sampling: SamplingParams) -> None:
    """Without a draft model. A random model's long greedy answers run in circles, which is recalled, and comes true."""
    asked = load(3, seed=6, sampling=sampling)
    requests = {key: replace(request, max_tokens=80) for key, request in asked.items()}
    scheduler = Scheduler(Limits(3, poison=True, prefill_chunk=16), make_policy("adaptive", width=8))
    scheduler.lose_draft()
    generated = Simulation(scheduler, build_stages(models["llama"], 3, NUM_SLOTS), None, NUM_SLOTS).run(requests)
    assert {key: generated[key].tokens for key in requests} == run(models["llama"], "none", 1, "", requests)
    assert scheduler.counts.predicted_rows > 0
    assert scheduler.counts.hits > 0 or sampling is SAMPLED
    assert scheduler.num_slots_used == 0
