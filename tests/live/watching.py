"""A scheduler whose batches and verdicts are seen by a picture, on a simulated clock."""

from __future__ import annotations

from benchmarks.simulation import Simulation, Timing
from draft_service.live.picture import Picture, Step
from draft_service.live.tap import Tap
from draft_service.schedule.scheduler import Limits, Output, Scheduler
from pipedec.policy import PolicyName, make_policy
from pipedec.wire.messages import Batch, Verdict
from tests.symbolic import SymbolicDraft, SymbolicStage


class WatchedScheduler(Scheduler):
    """Does to a tap what the head's loop does."""

    def __init__(self, limits: Limits, policy: PolicyName) -> None:
        super().__init__(limits, make_policy(policy, width=6, children=3, depth=3))
        self.tap = Tap(limits.stages)
        self.simulation: Simulation

    def compose(self) -> Batch | None:
        batch = super().compose()
        if batch is not None and self.tap.watched:
            self.tap.add(self.simulation.now, batch)
        return batch

    def on_verdict(self, verdict: Verdict) -> list[Output]:
        if self.tap.watched:
            self.tap.add(self.simulation.now, verdict)
        return super().on_verdict(verdict)


class Watch:
    """A simulation and the picture of it, which `look` brings up to date; `steps` are those that are over."""

    def __init__(self, policy: PolicyName, stages: int, quality: float, timing: Timing | None = None) -> None:
        self.scheduler = WatchedScheduler(Limits(stages, prefill_chunk=4), policy)
        spans = [SymbolicStage(index == 0, index == stages - 1) for index in range(stages)]
        draft = SymbolicDraft(quality, children=3) if policy != "none" else None
        self.simulation = Simulation(self.scheduler, spans, draft, 512, timing, after_event=self.look)
        self.scheduler.simulation = self.simulation
        self.picture = Picture(stages)
        self.steps: list[Step] = []

    def begin(self) -> None:
        self.scheduler.tap.open(self.simulation.now, self.scheduler.running.values())

    def look(self) -> None:
        events = self.scheduler.tap.drain()
        assert events is not None
        self.picture.apply(events)
        self.picture.forget(self.scheduler.running)
        self.steps += self.picture.take_finished()
