"""What watchers see: batches on their way, trees, and how fast it goes. Pure; times are seconds of the head's clock."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from draft_service.live.passage import Passage, Passages
from draft_service.live.speed import Speed
from draft_service.live.tap import Event, Fault, Known, Opening, StepTimes
from draft_service.live.trees import Fate, Prediction, Tree
from pipedec.wire.messages import Batch, Open, Prefill, Reuse, Verdict

BUSY_SECONDS = 3.0  # over which stages are found busy or idle


@dataclass(slots=True)
class Step:
    """A batch, in the pipeline or past it. `prompt` counts its prefill rows, `decided` the tokens of its verdict, which
    came when it was `over`. `lost`: its epoch ended before."""

    number: int
    prompt: int
    nodes: list[Prediction]
    passage: Passage
    decided: int = 0
    over: float | None = None
    lost: bool = False

    def count(self, fate: Fate) -> int:
        return sum(node.fate is fate for node in self.nodes)


class Picture:
    """One watch of one pipeline, from the `Opening` on."""

    def __init__(self, stages: int) -> None:
        self.passages = Passages(stages)
        self.speed = Speed()
        self.trees: dict[int, Tree] = {}
        self.in_flight: dict[int, Step] = {}
        self._finished: list[Step] = []  # since the latest `take_finished`
        self._recent: list[Step] = []  # over for `BUSY_SECONDS` at most

    def observe(self, step_times: list[StepTimes]) -> None:
        """What the stages say of their step times."""
        self.passages.observe(step_times)

    def apply(self, events: Iterable[Event]) -> None:
        """What happened, in order."""
        for now, message in events:
            match message:
                case Batch():
                    self._sent(now, message)
                case Verdict():
                    self._answered(now, message)
                case Opening(requests):
                    for known in requests:
                        self._know(known)
                case Fault():
                    self._lost(now)

    def forget(self, running: Iterable[int]) -> None:
        """Only these requests are running still."""
        gone = self.trees.keys() - set(running)
        for request in gone:
            self.trees.pop(request).close()
        if gone and not self.trees:
            self.speed.pause()

    def take_finished(self) -> list[Step]:
        """The batches that came back, or were lost, since the last call."""
        finished, self._finished = self._finished, []
        return finished

    def busy(self, now: float) -> list[float]:
        """The estimated share of the last seconds in which each stage computed, 0 to 1."""
        since = now - BUSY_SECONDS
        self._recent = [step for step in self._recent if step.over is not None and step.over > since]
        passages = [step.passage for step in (*self._recent, *self.in_flight.values())]
        shares = []
        for stage in range(self.passages.stages):
            spans = ((passage.begins[stage], passage.ends[stage]) for passage in passages)
            total = sum(max(0.0, min(end, now) - max(begin, since)) for begin, end in spans)
            shares.append(min(1.0, total / BUSY_SECONDS))
        return shares

    def _know(self, known: Known) -> None:
        tree = self.trees[known.request] = Tree(known.request, known.num_prompt)
        tree.num_output = known.num_output
        if known.cursor_sent:
            tree.sent(Prediction(known.cursor, -1, known.token, known.position, -1))
            for row in sorted(known.nodes, key=lambda row: row.position):
                tree.sent(Prediction(row.node, row.parent, row.token, row.position, -1))

    def _sent(self, now: float, batch: Batch) -> None:
        for op in batch.ops:
            if isinstance(op, Open):
                if not self.trees:
                    self.speed.pause()
                self.trees[op.request] = Tree(op.request, op.num_prompt)
            elif isinstance(op, Prefill | Reuse) and (tree := self.trees.get(op.request)) is not None:
                tree.num_output = max(0, op.start + len(op.tokens) + 1 - tree.num_prompt)
        rows, nodes = batch.rows, []
        columns = (rows.request, rows.node, rows.parent, rows.token, rows.position)
        for request, id, parent, token, position in zip(*(column.tolist() for column in columns), strict=True):
            node = Prediction(id, parent, token, position, batch.step)
            nodes.append(node)
            if (tree := self.trees.get(request)) is not None:
                tree.sent(node)
        passage = self.passages.sent(batch.num_rows, now)
        self.in_flight[batch.step] = Step(batch.step, batch.num_prefill, nodes, passage)

    def _answered(self, now: float, verdict: Verdict) -> None:
        decided = 0
        for decision in verdict.decisions:
            for token in decision.tokens:
                if (tree := self.trees.get(decision.request)) is not None:
                    self.speed.decided(tree.decided(token))
                    decided += 1
        if decided:
            self.speed.came(now, decided)
        if (step := self.in_flight.pop(verdict.step, None)) is not None:
            step.decided = decided
            self.passages.answered(step.passage, now)
            self._over(step, now)

    def _lost(self, now: float) -> None:
        for step in self.in_flight.values():
            step.lost = True
            self._over(step, now)
        self.in_flight.clear()
        for tree in self.trees.values():
            tree.close()
        self.passages.clear()
        self.speed.pause()

    def _over(self, step: Step, now: float) -> None:
        step.over = now
        self._finished.append(step)
        self._recent.append(step)
