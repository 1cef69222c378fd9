"""Turns of conversations on real models: what is reused of earlier ones changes no token."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.local import build_stages
from benchmarks.simulation import Simulation
from draft_service.generation import GenerationRequest
from draft_service.schedule.scheduler import Limits, Scheduler
from pipedec.errors import UnfinishableError
from pipedec.model.execution import Execution
from pipedec.policy import PolicyName, make_policy
from pipedec.sampling_params import SamplingParams
from tests.exactness.drafts import make_draft
from tests.exactness.pipelines import NUM_SLOTS, POLICIES, SAMPLED, expected, load, run
from tests.tiny import tiny_model

TURNS = 3


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("llama"), layers=4)


def converse(
    model: Path,
    policy: PolicyName,
    sampling: SamplingParams,
    execution: Execution | None = None,
    num_slots: int = NUM_SLOTS,
) -> tuple[dict[int, GenerationRequest], dict[int, list[int]], Scheduler]:
    """Three conversations, whose turns are asked together; each begins with all that was said before."""
    scheduler = Scheduler(Limits(3, poison=True, prefill_chunk=16), make_policy(policy, width=8, children=4, depth=3))
    draft = None if policy == "none" else make_draft("noisy", model, num_slots, execution=execution)
    stages = build_stages(model, 3, num_slots, torch.float32, "cpu", execution)
    simulation = Simulation(scheduler, stages, draft, num_slots, after_event=scheduler.check_integrity)
    rng, asked, turn = random.Random(9), {}, load(3, seed=9, sampling=sampling)
    for number in range(TURNS):
        asked |= turn
        said = simulation.run(turn)
        turn = {
            key + len(turn): replace(
                each, prompt=(*each.prompt, *said[key].tokens, *(rng.randrange(256) for _ in range(1 + 7 * number)))
            )
            for key, each in turn.items()
        }
    assert scheduler.num_slots_used == 0
    return asked, {key: simulation.generated[key].tokens for key in asked}, scheduler


@pytest.mark.parametrize(
    ("attention", "policy"),
    [*((None, policy) for policy in POLICIES), ("sdpa", "adaptive"), ("dense", "none"), ("dense", "adaptive")],
)
def test_greedy_turns_equal_generate(llama: Path, attention: str | None, policy: PolicyName) -> None:
    buckets = (1, 2, 4, 8, 16, 32) if attention == "dense" else ()
    execution = None if attention is None else Execution(attention, buckets)  # type: ignore[arg-type]
    asked, said, scheduler = converse(llama, policy, SamplingParams(), execution)
    assert said == expected(llama, asked)
    assert scheduler.counts.prefix_hits > 0.5 * scheduler.counts.prefix_queries


def test_what_is_reused_counts_for_penalties(llama: Path) -> None:
    asked, said, scheduler = converse(llama, "adaptive", SAMPLED)
    assert said == run(llama, "none", 1, "", asked, prefix_cache=False)
    assert scheduler.counts.prefix_hits > 0


@pytest.mark.parametrize("policy", ["none", "adaptive"])
def test_a_prompt_that_overflows_spoils_no_other_that_begins_alike(llama: Path, policy: PolicyName) -> None:
    """What it has in common with others was computed beside a token whose values are not numbers, and is known."""
    scheduler = Scheduler(Limits(3, poison=True, prefill_chunk=64), make_policy(policy, width=8))
    scheduler.lose_draft()
    stages = build_stages(llama, 3, NUM_SLOTS)
    executor = stages[0]._executor
    with torch.inference_mode():
        executor.model.architecture.embedding.weight[200] = torch.inf
    simulation = Simulation(scheduler, stages, None, NUM_SLOTS, after_event=scheduler.check_integrity)
    common = tuple(range(1, 40))
    overflowing, *sound = (GenerationRequest((*common, token, 51), 12) for token in (200, 50, 52))
    requests = dict(enumerate(sound))
    with pytest.raises(UnfinishableError, match="the logits are nan"):
        simulation.run({9: overflowing})
    simulation.run(requests)
    assert {key: simulation.generated[key].tokens for key in requests} == expected(llama, requests)
    assert scheduler.counts.given_up == 1
    simulation.run(later := {7: GenerationRequest((*common, 53), 12)})
    assert simulation.generated[7].tokens == expected(llama, later)[7]
    assert scheduler.counts.prefix_hits > 0
    assert scheduler.num_slots_used == 0


def test_turns_in_a_pool_that_is_always_full(llama: Path) -> None:
    asked, said, scheduler = converse(llama, "adaptive", SamplingParams(), num_slots=180)
    assert said == expected(llama, asked)
    assert 0 < scheduler.counts.prefix_hits < 0.8 * scheduler.counts.prefix_queries
