"""Whole pipelines of tiny models, and what they are to say."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path

import torch

from benchmarks.local import build_stages
from benchmarks.simulation import Simulation
from draft_service.generation import GenerationRequest
from draft_service.schedule.scheduler import Limits, Scheduler
from pipedec.model.execution import Execution
from pipedec.model.grammar import Grammars
from pipedec.policy import PolicyName, make_policy
from pipedec.sampling_params import SamplingParams
from tests.exactness.drafts import make_draft
from tests.tiny import reference_greedy

POLICIES: tuple[PolicyName, ...] = ("none", "static-tree", "pipedec", "adaptive")
NUM_SLOTS = 512
SAMPLED = SamplingParams(
    temperature=0.9, top_k=40, top_p=0.95, min_p=0.01, repetition_penalty=1.1, frequency_penalty=0.2, seed=11
)


def load(count: int, seed: int, sampling: SamplingParams | None = None) -> dict[int, GenerationRequest]:
    rng = random.Random(seed)
    return {
        key: GenerationRequest(
            tuple(rng.randrange(256) for _ in range(rng.choice((1, 2, 7, 19, 40)))),
            rng.randint(8, 20),
            sampling or SamplingParams(),
        )
        for key in range(count)
    }


def run(
    model: Path,
    policy: PolicyName,
    stages: int,
    kind: str,
    requests: dict[int, GenerationRequest],
    execution: Execution | None = None,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    grammars: Grammars | None = None,
    **limits: int,
) -> dict[int, list[int]]:
    """What a pipeline says to the requests, poisoning every slot that it frees."""
    scheduler = Scheduler(
        Limits(stages, poison=True, prefill_chunk=limits.pop("prefill_chunk", 16), **limits),
        make_policy(policy, width=8, children=4, depth=3),
        grammars,
    )
    draft = None if policy == "none" else make_draft(kind, model, NUM_SLOTS, execution=execution, device=device)
    workers = build_stages(model, stages, NUM_SLOTS, dtype, device, execution, grammars)
    simulation = Simulation(scheduler, workers, draft, NUM_SLOTS)
    generated = simulation.run(requests)
    assert scheduler.num_slots_used == 0
    return {key: generated[key].tokens for key in requests}


def run_again(
    model: Path,
    requests: dict[int, GenerationRequest],
    *,
    steps: int,
    prefill_chunk: int,
    dtype: torch.dtype = torch.float32,
    grammars: Grammars | None = None,
) -> dict[int, list[int]]:
    """What three stages under `adaptive` say, lost amid the answers and formed anew."""
    scheduler = Scheduler(
        Limits(3, poison=True, prefill_chunk=prefill_chunk), make_policy("adaptive", width=8, children=4), grammars
    )
    stages = build_stages(model, 3, NUM_SLOTS, dtype, grammars=grammars)
    simulation = Simulation(scheduler, stages, make_draft("noisy", model, NUM_SLOTS), NUM_SLOTS)
    countdown = iter(range(steps))
    simulation.run(requests, until=lambda: next(countdown, None) is None)
    assert any(simulation.generated[key].tokens for key in requests)
    assert scheduler.running
    simulation.form(NUM_SLOTS)
    generated = simulation.run({})
    return {key: generated[key].tokens for key in requests}


@cache
def greedy(model: Path, prompt: tuple[int, ...], tokens: int) -> list[int]:
    return reference_greedy(model, prompt, tokens)


def expected(model: Path, requests: dict[int, GenerationRequest]) -> dict[int, list[int]]:
    return {key: greedy(model, request.prompt, request.max_tokens) for key, request in requests.items()}
