"""One configuration of a pipeline on recorded prompts: how fast it decodes, and what its rows were worth."""

from __future__ import annotations

import gc
import json
import math
import statistics
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.recording import Transcript
from benchmarks.replay import ReplayStage
from benchmarks.simulation import Generated, Simulation, Timing
from draft_service.draft.drafter import Proposer
from draft_service.generation import GenerationRequest
from draft_service.schedule.scheduler import Limits, Scheduler
from pipedec.errors import PipeDecError
from pipedec.policy import Policy

SLOTS = 1 << 15
PREFILL_CHUNK = 256


@dataclass(frozen=True, slots=True)
class Device:
    """How long things take, milliseconds. `curve`: (rows, milliseconds) of a stage, rising in rows; beyond its last
    point time is proportional to rows, and so is a draft's. One point is a device that is flat up to there."""

    curve: tuple[tuple[int, float], ...] = ((64, 20.0),)
    draft_ms: float = 5.0
    link_ms: float = 0.5

    def stage_seconds(self, rows: int) -> float:
        points = self.curve
        if rows >= points[-1][0]:
            return points[-1][1] * rows / points[-1][0] / 1000
        index = bisect_left(points, rows, key=lambda point: point[0])
        if index == 0:
            return points[0][1] / 1000
        (left, low), (right, high) = points[index - 1 : index + 1]
        return (low + (high - low) * (rows - left) / (right - left)) / 1000

    def draft_seconds(self, rows: int) -> float:
        return self.draft_ms / self.curve[0][1] * self.stage_seconds(rows)

    @property
    def timing(self) -> Timing:
        return Timing(self.stage_seconds, self.draft_seconds, self.link_ms / 1000)

    @property
    def levels_per_step(self) -> float:
        """Levels of a tree that the draft can add while a stage is busy with one batch, at least one."""
        return max(1.0, self.curve[0][1] / self.draft_ms) if self.draft_ms else math.inf


def read_curve(file: Path) -> tuple[tuple[int, float], ...]:
    """A stage's milliseconds by rows, from a JSON object such as {"1": 18.5, "64": 20, "128": 31}."""
    try:
        points = tuple(sorted((int(rows), float(ms)) for rows, ms in json.loads(file.read_text()).items()))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise PipeDecError(
            f'--rows-curve {file}: {error}. Write milliseconds by rows: {{"1": 18.5, "64": 20}}'
        ) from error
    if not points or points[0][0] < 1 or min(ms for _, ms in points) <= 0:
        raise PipeDecError(f"--rows-curve {file}: rows and milliseconds are positive, and there is at least one point")
    return points


@dataclass(slots=True)
class Outcome:
    """What a run of some requests gave. `seconds` is decoding time, from the first token to the last, summed over
    requests, or of all concurrent ones together; `tokens` are those decoded in it."""

    tokens: int = 0
    seconds: float = 0.0
    per_token: list[float] = field(default_factory=list)  # of each request, seconds
    hits: int = 0
    misses: int = 0
    steps: int = 0  # batches that carried rows of a request, summed over requests
    batches: int = 0
    rows: int = 0
    predicted: int = 0
    drafted: int = 0

    def __add__(self, other: Outcome) -> Outcome:
        return Outcome(*(getattr(self, name) + getattr(other, name) for name in self.__slots__))

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def hit_rate(self) -> float:
        return self.hits / (self.hits + self.misses)

    @property
    def tokens_per_step(self) -> float:
        return (self.hits + self.misses) / self.steps

    @property
    def rows_per_step(self) -> float:
        return self.rows / self.batches

    @property
    def wasted(self) -> float:
        """Share of the predictions sent that did not become tokens; 0 where none were sent."""
        return 1 - self.hits / self.predicted if self.predicted else 0.0

    @property
    def median(self) -> float:
        return statistics.median(self.per_token)

    @property
    def p99(self) -> float:
        ordered = sorted(self.per_token)
        return ordered[math.ceil(0.99 * len(ordered)) - 1]


def run(
    transcripts: Sequence[Transcript],
    policy: Policy,
    draft: Proposer | None,
    stages: int,
    device: Device,
    vocab_size: int,
    concurrency: int = 1,
    slots: int = SLOTS,
) -> Outcome:
    """Decode the transcripts' prompts and check every token: one after the other, or `concurrency` at once, each
    followed by the next in line."""
    simulation = simulate(transcripts, policy, draft, stages, device, vocab_size, concurrency, slots)
    gc.freeze()  # trees are freed as they die; the collector would look at each node over and over
    gc.disable()
    try:
        return decode(simulation, transcripts, concurrency)
    finally:
        gc.enable()


def decode(simulation: Simulation, transcripts: Sequence[Transcript], concurrency: int) -> Outcome:
    """What `run` does, in a pipeline of `simulate`'s."""
    outcome = Outcome()
    size = 1 if concurrency == 1 else len(transcripts)
    for start in range(0, len(transcripts), size):
        group = transcripts[start : start + size]
        load = {start + i: GenerationRequest(t.prompt, len(t.answer)) for i, t in enumerate(group)}
        simulation.run(load)
        _add(outcome, [simulation.generated[key] for key in load], group)
    counts = simulation.scheduler.counts
    outcome.batches, outcome.predicted, outcome.drafted = counts.batches, counts.predicted_rows, counts.draft_rows
    outcome.rows = counts.predicted_rows + counts.certain_rows
    return outcome


def simulate(
    transcripts: Sequence[Transcript],
    policy: Policy,
    draft: Proposer | None,
    stages: int,
    device: Device,
    vocab_size: int,
    concurrency: int = 1,
    slots: int = SLOTS,
    kind: type[Scheduler] = Scheduler,
) -> Simulation:
    """A pipeline that replays these transcripts; `kind` of scheduler."""
    scheduler = kind(Limits(stages, max_sequences=concurrency, prefill_chunk=PREFILL_CHUNK), policy)
    if draft is None:
        scheduler.lose_draft()
    workers = [ReplayStage(transcripts, vocab_size, is_last=index == stages - 1) for index in range(stages)]
    return Simulation(scheduler, workers, draft if policy.children else None, slots, device.timing)


def _add(outcome: Outcome, generated: Sequence[Generated], transcripts: Sequence[Transcript]) -> None:
    for done, transcript in zip(generated, transcripts, strict=True):
        if tuple(done.tokens) != transcript.answer:
            raise AssertionError(f"a policy changed the answer: {done.tokens} instead of {transcript.answer}")
        assert done.statistics is not None, "a finished request has statistics"
        outcome.steps += done.statistics.steps
        outcome.hits += done.statistics.hits
        outcome.misses += done.statistics.misses
        if len(done.tokens) > 1:
            outcome.per_token.append((done.times[-1] - done.times[0]) / (len(done.tokens) - 1))
    outcome.tokens += sum(len(done.tokens) - 1 for done in generated)
    outcome.seconds += max(done.times[-1] for done in generated) - min(done.times[0] for done in generated)
