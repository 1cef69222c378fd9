"""What the head computes for each step of the pipeline: milliseconds of one core, call by call.

    python -m benchmarks.head --stages 8 --policy none,pipedec,adaptive --concurrency 1,8

Stages wait for none of it as long as it fits into their step, but a batch waits for `compose`, and the draft model
for `answers` and `compose_draft` between two of its runs. The scheduler, the policy and the messages are real; stages
and draft replay a record on a simulated clock (see `benchmarks.speedup`), and are not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks import speedup
from benchmarks.comparison import Tuning
from benchmarks.drafts import DraftSource
from benchmarks.measure import Device, decode, simulate
from benchmarks.recording import Transcript
from benchmarks.wallclock.scene import prompts_of_each_kind
from draft_service.schedule.draft_batches import DraftRun
from draft_service.schedule.scheduler import Limits, Output, Scheduler
from pipedec.config import model_cache
from pipedec.errors import PipeDecError
from pipedec.garbage import collect_rarely
from pipedec.model.shape import model_shape
from pipedec.models import resolve
from pipedec.policy import Policy, PolicyName
from pipedec.proposals import Proposals
from pipedec.wire import codec
from pipedec.wire.messages import Batch, Cancel, Verdict


class TimedScheduler(Scheduler):
    """Adds up the CPU seconds of each call; those of messages include what it takes to write them."""

    def __init__(self, limits: Limits, policy: Policy) -> None:
        super().__init__(limits, policy)
        self.seconds = dict.fromkeys(("verdicts", "compose", "answers", "compose_draft", "cancel"), 0.0)
        self.draft_runs = 0

    @contextmanager
    def _timed(self, call: str) -> Iterator[None]:
        start = time.thread_time()
        yield
        self.seconds[call] += time.thread_time() - start

    def on_verdict(self, verdict: Verdict) -> list[Output]:
        with self._timed("verdicts"):
            return super().on_verdict(verdict)

    def compose(self) -> Batch | None:
        with self._timed("compose"):
            if (batch := super().compose()) is not None:
                codec.encode(batch)
        return batch

    def on_proposals(self, epoch: int, proposals: Proposals) -> None:
        self.draft_runs += 1
        with self._timed("answers"):
            super().on_proposals(epoch, proposals)

    def compose_draft(self) -> DraftRun | None:
        with self._timed("compose_draft"):
            return super().compose_draft()

    def take_cancel(self) -> Cancel | None:
        with self._timed("cancel"):
            if (cancel := super().take_cancel()) is not None:
                codec.encode(cancel)
        return cancel


@dataclass(frozen=True, slots=True)
class Result:
    """One configuration. `milliseconds` by call are per step, `draft_gap` is per run of the draft."""

    stages: int
    policy: PolicyName
    concurrency: int
    rows: float  # per step
    milliseconds: dict[str, float]
    draft_gap: float

    @property
    def total(self) -> float:
        return sum(self.milliseconds.values())


def measure(
    transcripts: Sequence[Transcript],
    draft: DraftSource,
    stages: int,
    policy: PolicyName,
    concurrency: int,
    device: Device,
    vocab_size: int,
) -> Result:
    """Decode the transcripts' prompts, `concurrency` of them at once."""
    rule = Tuning(width=32, children=16, depth=4).policy(policy, device)
    proposer = draft.build(transcripts, rule.children) if rule.children else None
    simulation = simulate(transcripts, rule, proposer, stages, device, vocab_size, concurrency, kind=TimedScheduler)
    collect_rarely()
    outcome = decode(simulation, transcripts, concurrency)
    scheduler = simulation.scheduler
    assert isinstance(scheduler, TimedScheduler), "simulate builds what it is told to"
    seconds = scheduler.seconds
    return Result(
        stages,
        policy,
        concurrency,
        outcome.rows_per_step,
        {call: 1000 * spent / outcome.batches for call, spent in seconds.items()},
        1000 * (seconds["answers"] + seconds["compose_draft"]) / max(1, scheduler.draft_runs),
    )


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.head", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--stages", type=speedup.numbers, default=(8,), help="numbers of stages, e.g. 4,8,14 (default 8)")
    add("--policy", type=speedup.policies, default=("none", "adaptive"), help="default none,adaptive")
    add("--concurrency", type=speedup.numbers, default=(1,), help="requests decoded at once, e.g. 1,8 (default 1)")
    add("--number", type=int, default=12, help="prompts to answer, of different kinds (default 12)")
    add("--draft", default="emulated:0.76", help="as for benchmarks.speedup (default emulated:0.76)")
    add("--stage-ms", type=float, default=20.0, help="of a stage, for a batch of up to 64 rows (default 20)")
    add("--draft-ms", type=float, default=5.0, help="of one run of the draft, likewise (default 5)")
    add("--json", action="store_true", help="one JSON object on stdout, and nothing else")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        label, results = _measure_all(options)
    except PipeDecError as error:
        raise SystemExit(f"error: {error}") from error
    if options.json:
        print(json.dumps({"draft": label, "results": [asdict(each) for each in results]}))
    else:
        speedup.console().print(_table(results, label))
    return 0


def _measure_all(options: argparse.Namespace) -> tuple[str, list[Result]]:
    """The draft's label, and every combination that the options ask for."""
    recorded = speedup.parser().parse_args([f"--draft={options.draft}"])
    target = resolve(recorded.model, model_cache())
    with Progress(console=Console(stderr=True), transient=True) as progress:
        _, transcripts = speedup.record(recorded, target, progress)
    chosen = [transcripts[i] for i in prompts_of_each_kind([each.kind for each in transcripts], options.number)]
    device, vocab_size = Device(((64, options.stage_ms),), options.draft_ms), model_shape(target).vocab_size
    with TemporaryDirectory() as folder:
        draft = DraftSource(options.draft, target).set_for(transcripts, Path(folder))
        return draft.label, [
            measure(chosen, draft, stages, policy, concurrency, device, vocab_size)
            for stages in options.stages
            for concurrency in options.concurrency
            for policy in options.policy
        ]


def _table(results: Sequence[Result], draft: str) -> Table:
    calls = list(results[0].milliseconds)
    table = Table(
        "stages", "at once", "policy", "rows", *calls, "total", "of a draft run", title=f"ms per step; {draft}"
    )
    for each in results:
        numbers = (each.rows, *each.milliseconds.values(), each.total, each.draft_gap)
        table.add_row(str(each.stages), str(each.concurrency), each.policy, *(f"{number:.3f}" for number in numbers))
    return table


if __name__ == "__main__":
    sys.exit(main())
