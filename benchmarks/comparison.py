"""Policies side by side: which runs a comparison needs, in parallel, and what their results say of one another."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from multiprocessing import get_context
from pathlib import Path

from benchmarks.drafts import DraftSource
from benchmarks.measure import Device, Outcome, run
from benchmarks.recording import Transcript, load
from pipedec.policy import Policy, PolicyName, make_policy

STATIC_WIDTHS = (4, 8, 16, 32)
STATIC_DEPTHS = (1, 2, 3, 4, 6, 8, 11)
TUNING_PROMPTS = 12
OVERALL = "all"


@dataclass(frozen=True, slots=True)
class Tuning:
    """A policy's settings."""

    width: int = 32
    children: int = 16
    depth: int = 4

    def __str__(self) -> str:
        return f"width {self.width}, children {self.children}, depth {self.depth}"

    def policy(self, name: PolicyName, device: Device) -> Policy:
        """The policy of that name with these settings; the width of `adaptive` is its own choice."""
        return make_policy(
            name,
            width=self.width if name in ("pipedec", "static-tree") else None,
            children=self.children,
            depth=self.depth,
            cost=device.stage_seconds,
            draft_cost=device.draft_seconds,
        )


@dataclass(frozen=True, slots=True)
class Scene:
    """What all runs of a comparison have in common. Small: transcripts are read from the record where they run."""

    record: Path
    vocab_size: int
    draft: DraftSource
    device: Device
    concurrency: int


@dataclass(frozen=True, slots=True)
class Job:
    """One run: a policy at a number of stages on the prompts with these indices."""

    policy: PolicyName
    stages: int
    kind: str
    prompts: tuple[int, ...]
    tuning: Tuning


@dataclass(frozen=True, slots=True)
class Result:
    """One line of the table. `over` are speed-ups over the other policies' results for the same prompts."""

    policy: PolicyName
    stages: int
    kind: str
    tuning: Tuning
    outcome: Outcome
    over: dict[str, float]
    bound_share: float


@cache
def _transcripts(record: Path) -> list[Transcript]:
    transcripts = load(record)
    assert transcripts is not None, "the record was written before"
    return transcripts


def _run(scene: Scene, job: Job) -> Outcome:
    transcripts = [_transcripts(scene.record)[index] for index in job.prompts]
    policy = job.tuning.policy(job.policy, scene.device)
    draft = scene.draft.build(transcripts, job.tuning.children) if policy.children else None
    return run(transcripts, policy, draft, job.stages, scene.device, scene.vocab_size, scene.concurrency)


class Runner:
    """Runs jobs on all cores. `progress` is told how many are done, and of how many."""

    def __init__(self, scene: Scene, processes: int | None, progress: Callable[[int, int], None]) -> None:
        self._scene, self._progress = scene, progress
        # Not forked: a child of a process whose PyTorch has threads waits for theirs for ever.
        self._pool = ProcessPoolExecutor(processes or os.cpu_count(), get_context("spawn"))

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def run(self, jobs: Sequence[Job]) -> dict[Job, Outcome]:
        futures = {self._pool.submit(_run, self._scene, job): job for job in jobs}
        done: dict[Job, Outcome] = {}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            self._progress(len(done), len(futures))
        return done


def tune_static_tree(
    runner: Runner, stages: Sequence[int], widths: Sequence[int], num_prompts: int, children: int
) -> dict[int, Tuning]:
    """The static tree's best width and depth for each number of stages, on a sample of the prompts."""
    sample = tuple(range(0, num_prompts, max(1, num_prompts // TUNING_PROMPTS)))
    jobs = [
        Job("static-tree", count, OVERALL, sample, Tuning(width, children, depth))
        for count in stages
        for width in widths
        for depth in STATIC_DEPTHS
    ]
    outcomes = runner.run(jobs)
    return {
        count: max((job for job in jobs if job.stages == count), key=lambda job: outcomes[job].tokens_per_second).tuning
        for count in stages
    }


def compare(
    runner: Runner,
    policies: Sequence[PolicyName],
    stages: Sequence[int],
    kinds: Sequence[str],
    tuning: Tuning,
    static_widths: Sequence[int],
    concurrency: int,
    levels_per_step: float,
    step_seconds: float,
) -> list[Result]:
    """Every policy at every number of stages, by kind of prompt (`kinds[i]` is prompt i's) and over all of them."""
    groups = {kind: tuple(i for i, other in enumerate(kinds) if other == kind) for kind in dict.fromkeys(kinds)}
    if concurrency > 1:
        groups = {OVERALL: _interleaved(list(groups.values()))}
    static = (
        tune_static_tree(runner, stages, static_widths, len(kinds), tuning.children)
        if "static-tree" in policies
        else {}
    )
    jobs = [
        Job(policy, count, kind, prompts, static[count] if policy == "static-tree" else tuning)
        for count in stages
        for policy in policies
        for kind, prompts in groups.items()
    ]
    outcomes = runner.run(jobs)
    results = [
        Result(job.policy, job.stages, job.kind, job.tuning, outcome, {}, 0.0) for job, outcome in outcomes.items()
    ]
    if OVERALL not in groups:
        results += [_overall(results, policy, count) for count in stages for policy in policies]
    levels = {"adaptive": levels_per_step}
    return [
        replace(
            result,
            over=_over(result, results),
            bound_share=result.outcome.tokens_per_second
            * step_seconds
            / (levels.get(result.policy, 1.0) * concurrency),
        )
        for result in sorted(results, key=lambda r: (r.stages, r.kind == OVERALL, r.kind, policies.index(r.policy)))
    ]


def _interleaved(groups: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    longest = max(map(len, groups))
    return tuple(group[i] for i in range(longest) for group in groups if i < len(group))


def _overall(results: Sequence[Result], policy: PolicyName, stages: int) -> Result:
    parts = [result for result in results if (result.policy, result.stages) == (policy, stages)]
    outcome = parts[0].outcome
    for part in parts[1:]:
        outcome = outcome + part.outcome
    return replace(parts[0], kind=OVERALL, outcome=outcome)


def _over(result: Result, results: Sequence[Result]) -> dict[str, float]:
    return {
        other.policy: result.outcome.tokens_per_second / other.outcome.tokens_per_second
        for other in results
        if (other.stages, other.kind) == (result.stages, result.kind)
    }
