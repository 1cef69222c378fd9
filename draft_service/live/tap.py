"""What the head's loop leaves for watchers: references to its messages, in a ring of bounded size."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from draft_service.schedule.sequence import Sequence
from pipedec.wire.messages import Batch, Row, Verdict

MAX_EVENTS = 1024  # between two frames; more than any pipeline sends in a tenth of a second
MAX_FAULTS = 8

StepTimes = tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class Known:
    """A request as it stands when somebody begins to watch: its latest token, and its nodes that are in flight."""

    request: int
    num_prompt: int
    num_output: int
    cursor: int
    cursor_sent: bool
    token: int
    position: int
    nodes: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Opening:
    """The first event of a watch."""

    requests: tuple[Known, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """An epoch was lost, and perhaps a later one is live again; `reason` is the latest of several. Times are the head's
    clock, in seconds."""

    epoch: int
    reason: str
    lost: float
    live: float | None = None


Event = tuple[float, Batch | Verdict | Opening | Fault]


class Tap:
    """Filled in the head's thread; `drain` and the attributes may be read in any.

    `watched` says whether batches and verdicts are wanted. What happens once a second or less is noted always:
    `step_times` and `heard` by stage, and the latest `faults`, oldest first.
    """

    def __init__(self, stages: int) -> None:
        self.watched = False
        self.step_times: list[StepTimes] = [()] * stages
        self.heard: list[float | None] = [None] * stages
        self.faults: tuple[Fault, ...] = ()
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)

    def open(self, now: float, running: Iterable[Sequence]) -> None:
        """Somebody watches: begin with what there is."""
        self._events.clear()
        self._events.append((now, Opening(tuple(_known(sequence) for sequence in running))))
        self.watched = True

    def close(self) -> None:
        """Nobody watches any more."""
        self.watched = False
        self._events.clear()

    def add(self, now: float, message: Batch | Verdict) -> None:
        """A batch was sent, or a verdict came. To be called only while `watched`."""
        self._events.append((now, message))

    def beat(self, now: float, stage: int, step_times: StepTimes) -> None:
        """A stage said that it is alive, and how long its steps take by rows."""
        self.heard[stage], self.step_times[stage] = now, step_times

    def lost(self, now: float, epoch: int, reason: str) -> None:
        """An epoch is over: whatever was in flight will not come back."""
        fault, before = Fault(epoch, reason, now), self.faults
        if before and before[-1].live is None:  # it is not over yet: one outage, of which more is known now
            fault, before = Fault(epoch, reason, before[-1].lost), before[:-1]
        self.faults = (*before, fault)[-MAX_FAULTS:]
        if self.watched:
            self._events.append((now, fault))

    def live(self, now: float) -> None:
        """An epoch is live, which ends the faults before it."""
        self.faults = tuple(
            fault if fault.live is not None else Fault(fault.epoch, fault.reason, fault.lost, now)
            for fault in self.faults
        )

    def drain(self) -> list[Event] | None:
        """What happened since the last call, in order; None if so much that some of it was pushed out."""
        if len(self._events) == MAX_EVENTS:
            self._events.clear()
            return None
        return [self._events.popleft() for _ in range(len(self._events))]


def _known(sequence: Sequence) -> Known:
    root = sequence.tree.root
    nodes = tuple(
        Row(sequence.id, node.id, node.parent_id, node.token, node.position, node.slot, ())
        for node in root.subtree()
        if node.sent and node is not root
    )
    request = sequence.request
    prompt, output = len(request.prompt), len(sequence.output)
    return Known(sequence.id, prompt, output, root.id, root.sent, root.token, root.position, nodes)
