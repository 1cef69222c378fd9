"""Replaying a recorded target is as good as running it: same tokens, same times, whatever the policy and the draft."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.drafts import DraftSource
from benchmarks.local import build_drafter, build_stages
from benchmarks.measure import Device, Outcome, run, simulate
from benchmarks.recording import TOP, Transcript, load, save
from benchmarks.replayed_draft import ReplayedDraft, agreement, noise_level, noisy
from benchmarks.simulation import Simulation
from draft_service.draft.drafter import Proposer
from draft_service.generation import GenerationRequest
from draft_service.schedule.scheduler import Limits, Scheduler
from pipedec.policy import PolicyName, make_policy
from tests.benchmarks.conftest import VOCABULARY

POLICIES: tuple[PolicyName, ...] = ("static-tree", "pipedec", "adaptive")
NUM_SLOTS = 4096
AGREEMENT = 0.7


def times(simulation: Simulation, transcripts: Sequence[Transcript]) -> list[tuple[list[int], list[float], int]]:
    """Tokens, when each was decided, and the steps of each request."""
    load = {key: GenerationRequest(t.prompt, len(t.answer)) for key, t in enumerate(transcripts)}
    generated = simulation.run(load).values()
    return [(g.tokens, g.times, g.statistics.steps if g.statistics else 0) for g in generated]


@pytest.mark.parametrize("policy", POLICIES)
def test_replay_equals_the_full_run(model: Path, transcripts: list[Transcript], policy: PolicyName) -> None:
    """With a real draft, that really runs in both."""
    stages, device = 3, Device()
    drafts = [build_drafter(model, NUM_SLOTS, layers=2, children=4) for _ in range(2)]
    rules = [make_policy(policy, width=8, children=4, depth=3) for _ in range(2)]
    limits = Limits(stages, max_sequences=2, prefill_chunk=256)
    full = Simulation(
        Scheduler(limits, rules[0]), build_stages(model, stages, NUM_SLOTS), drafts[0], NUM_SLOTS, device.timing
    )
    replay = simulate(transcripts, rules[1], drafts[1], stages, device, VOCABULARY, 2, NUM_SLOTS)
    assert times(replay, transcripts[:2]) == times(full, transcripts[:2])


@pytest.mark.parametrize("policy", POLICIES)
def test_an_emulated_draft_off_the_path_is_like_a_real_one(
    model: Path, transcripts: list[Transcript], policy: PolicyName
) -> None:
    """Off the path replay draws distributions from recorded ones; in the other run the target computes them."""
    level = noise_level(transcripts, AGREEMENT)
    full = build_drafter(model, NUM_SLOTS, children=8, adjust=noisy(transcripts, level, TOP))
    modelled = outcome(policy, transcripts, ReplayedDraft(transcripts, level, 8))
    assert modelled.tokens_per_second == pytest.approx(outcome(policy, transcripts, full).tokens_per_second, rel=0.12)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_real_draft_in_replay_is_like_one_that_runs(
    model: Path, transcripts: list[Transcript], policy: PolicyName, tmp_path: Path
) -> None:
    replayed = DraftSource("layers:2", model).set_for(transcripts, tmp_path)
    running = build_drafter(model, NUM_SLOTS, layers=2, children=8)
    modelled = outcome(policy, transcripts, replayed.build(transcripts, 8))
    assert modelled.tokens_per_second == pytest.approx(outcome(policy, transcripts, running).tokens_per_second, rel=0.1)
    shares = replayed.agreements(transcripts)
    assert shares is not None
    assert 0 < shares[1] < shares[16] <= 1


def outcome(policy: PolicyName, transcripts: Sequence[Transcript], draft: Proposer | None) -> Outcome:
    rule = make_policy(policy, width=8, children=8, depth=3)
    return run(transcripts, rule, draft, 4, Device(), VOCABULARY, slots=NUM_SLOTS)


def test_noise_gives_the_agreement_asked_for(transcripts: list[Transcript]) -> None:
    assert agreement(transcripts, 0.0) == 1.0
    assert agreement(transcripts, noise_level(transcripts, AGREEMENT)) == pytest.approx(AGREEMENT, abs=0.02)


def test_a_record_is_read_as_it_was_written(transcripts: list[Transcript], tmp_path: Path) -> None:
    file = tmp_path / "record.npz"
    save(file, transcripts, {"model": "tiny"})
    kept = load(file, {"model": "tiny"})
    assert kept is not None
    assert [(t.prompt, t.answer) for t in kept] == [(t.prompt, t.answer) for t in transcripts]
    assert agreement(kept, 1.0) == pytest.approx(agreement(transcripts, 1.0), abs=0.03)
    assert load(file, {"model": "another"}) is None
