"""One configuration of a pipeline on recorded prompts: how fast it decodes, and what its rows were worth."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.recording import Transcript
from benchmarks.replay import ReplayStage
from benchmarks.simulation import Generated, Simulation, Span, Timing
from draft_service.drafter import Proposer
from draft_service.generation import GenerationRequest
from draft_service.scheduler import Limits, Scheduler
from pipedec.metrics.head import HeadCounts
from pipedec.policy import Policy

SLOTS = 1 << 16
PREFILL_CHUNK = 256


@dataclass(slots=True)
class Outcome:
    """What a run of some requests gave. `seconds` is decoding time: from the first token to the last one, summed over
    requests, or over rounds of concurrent ones; `tokens` are those decoded in it."""

    tokens: int = 0
    seconds: float = 0.0
    gaps: list[float] = field(default_factory=list)
    counts: HeadCounts = field(default_factory=HeadCounts)
    steps: int = 0
    spans: list[Span] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def per_token(self) -> list[float]:
        """Time per output token of each request, seconds."""
        return sorted(self.gaps)

    def percentile(self, share: float) -> float:
        ordered = self.per_token
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]

    @property
    def median(self) -> float:
        return statistics.median(self.gaps)


def rows_curve(flat: int, seconds: float) -> Callable[[int], float]:
    """A device whose time is the same up to `flat` rows, and proportional to rows beyond."""
    return lambda rows: seconds * max(1.0, rows / flat)


def run(
    transcripts: Sequence[Transcript],
    policy: Policy,
    draft: Proposer | None,
    stages: int,
    timing: Timing,
    vocab_size: int,
    concurrency: int = 1,
    progress: Callable[[], None] = lambda: None,
) -> Outcome:
    """Decode the transcripts' prompts, `concurrency` at once, and check every token."""
    scheduler = Scheduler(Limits(stages, max_sequences=concurrency, prefill_chunk=PREFILL_CHUNK), policy)
    workers = [ReplayStage(transcripts, vocab_size, is_last=index == stages - 1) for index in range(stages)]
    simulation = Simulation(scheduler, workers, draft if policy.children else None, SLOTS, timing)
    outcome = Outcome(counts=scheduler.counts)
    for start in range(0, len(transcripts), concurrency):
        group = transcripts[start : start + concurrency]
        load = {start + i: GenerationRequest(t.prompt, len(t.answer)) for i, t in enumerate(group)}
        simulation.run(load)
        _add(outcome, [simulation.generated[key] for key in load], group)
        progress()
    outcome.spans = simulation.spans
    return outcome


def _add(outcome: Outcome, generated: Sequence[Generated], transcripts: Sequence[Transcript]) -> None:
    for done, transcript in zip(generated, transcripts, strict=True):
        assert tuple(done.tokens) == transcript.answer, "not what the target alone says"
        if len(done.tokens) > 1:
            outcome.gaps.append((done.times[-1] - done.times[0]) / (len(done.tokens) - 1))
        assert done.statistics is not None
        outcome.steps += done.statistics.steps
    outcome.tokens += sum(len(done.tokens) - 1 for done in generated)
    outcome.seconds += max(done.times[-1] for done in generated) - min(done.times[0] for done in generated)
