"""Who is in the pipeline, and which epoch they work in. No sockets and no clock: messages and the time go in, actions
come out (DESIGN: a formation is one set of stage processes that work together; an epoch is its number).

    gathering --all stages of this revision present--> joining --every stage has joined--> live
        ^                                                 |                                  |
        +------- a stage silent, unreachable, restarted, or out of the epoch; `abandon` -----+

Stages that stay keep their weights: they merely join the next epoch, which begins as soon as none is missing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TypeAlias

from pipedec.wire.codec import FromStage
from pipedec.wire.messages import BEAT_SECONDS, NO_EPOCH, Formation, Heartbeat, Joined, Refused, Register, is_address

SILENCE_SECONDS = 30.0  # a stage computes in the loop that beats, so a long step looks like silence


@dataclass(frozen=True, slots=True)
class Send:
    """Tell a peer; when it cannot be reached, say so with `Members.unreachable`."""

    peer: bytes
    message: Formation | Refused | Heartbeat


@dataclass(frozen=True, slots=True)
class EpochBegun:
    """All stages were told. Connect to stage 0 at `address`; nothing may be sent to it before `EpochLive`."""

    epoch: int
    slots: int
    address: str


@dataclass(frozen=True, slots=True)
class EpochLive:
    """Every stage has reset its state and is connected: step 0 may go."""

    epoch: int
    slots: int


@dataclass(frozen=True, slots=True)
class EpochLost:
    """An epoch that had begun is over; whatever was in flight is lost."""

    epoch: int
    reason: str


Action: TypeAlias = Send | EpochBegun | EpochLive | EpochLost


class Phase(Enum):
    GATHERING = auto()
    JOINING = auto()
    LIVE = auto()


@dataclass(slots=True)
class _Member:
    offer: Register
    peer: bytes
    seen: float
    joined: int = NO_EPOCH
    begun: int = -1  # the newest step of its epoch that it is known to have begun


@dataclass(slots=True)
class Members:
    """The stages that have registered with this head.

    `first_epoch` must exceed every epoch of the heads before this one (milliseconds since 1970 will do), since
    their batches may still be on the way. `num_layers`, when known, is where the last stage must end. An epoch has
    `least_slots`, as one request may need, or more, up to `most_slots`, as the draft model has. Times are seconds of
    any monotonic clock.
    """

    stages: int
    revision: str
    verdict_address: str
    first_epoch: int
    num_layers: int | None = None
    least_slots: int = 1
    most_slots: int | None = None
    silence: float = SILENCE_SECONDS
    phase: Phase = field(default=Phase.GATHERING, init=False)
    epoch: int = field(init=False)  # the newest one that has begun; before the first, one less than it
    _members: dict[int, _Member] = field(default_factory=dict, init=False)
    _replaced: set[str] = field(default_factory=set, init=False)
    _refusals: dict[int, str] = field(default_factory=dict, init=False)
    _next_beat: float = field(default=-math.inf, init=False)

    def __post_init__(self) -> None:
        if self.first_epoch <= NO_EPOCH + 1:
            raise ValueError(f"first_epoch must exceed {NO_EPOCH + 1}, not be {self.first_epoch}")
        self.epoch = self.first_epoch - 1

    @property
    def live(self) -> bool:
        return self.phase is Phase.LIVE

    @property
    def peers(self) -> tuple[bytes, ...]:
        """Everybody who is registered, present or not."""
        return tuple(member.peer for member in self._members.values())

    def is_first(self, peer: bytes) -> bool:
        """Whether this peer is stage 0."""
        return 0 in self._members and self._members[0].peer == peer

    def whereabouts(self, step: int) -> str:
        """How far a step of this epoch is known to have come, for a person."""
        reached = [stage for stage, member in self._members.items() if member.begun >= step]
        return f"stage {max(reached)} has begun it" if reached else "no stage has begun it"

    def waiting_for(self, now: float) -> str:
        """Why the pipeline is not live, for a person; empty when it is."""
        if self.phase is Phase.LIVE:
            return ""
        if self.phase is Phase.JOINING:
            late = [stage for stage, member in sorted(self._members.items()) if member.joined != self.epoch]
            return f"epoch {self.epoch}: waiting for stage {_listed(late)} to join"
        missing = [stage for stage in range(self.stages) if not self._present(stage, now)]
        refused = [stage for stage in missing if stage in self._refusals]
        refusals = [f"; stage {stage} was refused: {self._refusals[stage]}" for stage in refused]
        return f"waiting for stage {_listed(missing)} to register" + "".join(refusals)

    def heard(self, now: float) -> list[float]:
        """By stage, seconds since it was last heard; infinite if never, or if it cannot be reached."""
        members = [self._members.get(stage) for stage in range(self.stages)]
        return [math.inf if member is None else now - member.seen for member in members]

    def missing(self, now: float) -> tuple[int, ...]:
        """The stages that are not there: not registered, silent or unreachable."""
        return tuple(stage for stage in range(self.stages) if not self._present(stage, now))

    def receive(self, peer: bytes, message: FromStage, now: float) -> list[Action]:
        """Any message of a stage; each is a sign of life. Replays and messages of older epochs change nothing."""
        if isinstance(message, Register):
            return self._register(peer, message, now)
        stage = next((stage for stage, member in self._members.items() if member.peer == peer), None)
        if stage is None:
            return [self._beat(peer, message.stage)]  # another epoch than its own: it will register
        member = self._members[stage]
        member.seen = now
        actions: list[Action] = []
        if isinstance(message, Joined) and message.epoch == self.epoch and self.phase is Phase.JOINING:
            member.joined, member.begun = self.epoch, -1
        if isinstance(message, Heartbeat) and message.epoch == member.joined:
            member.begun = message.step
        if isinstance(message, Heartbeat) and message.epoch == NO_EPOCH and self._joined(member):
            actions += self._lose(f"stage {stage} has left epoch {self.epoch}")
        return actions + self._advance(now)

    def unreachable(self, peer: bytes, now: float, reason: str = "") -> list[Action]:
        """A message could not be sent to this peer. It counts as missing until it is heard again."""
        for stage, member in self._members.items():
            if member.peer == peer:
                member.seen = -math.inf
                return self._lose(reason or f"stage {stage} cannot be reached") + self._advance(now)
        return []

    def abandon(self, reason: str, now: float) -> list[Action]:
        """The head gives up this epoch (a batch was lost, a link broke); the same members begin the next."""
        return self._lose(reason) + self._advance(now)

    def tick(self, now: float) -> list[Action]:
        """Notices silence, beats, and repeats what may have been lost. To be called at least every `BEAT_SECONDS`, when
        all that has arrived was given to `receive`."""
        actions: list[Action] = []
        for stage, member in self._members.items():
            if not self._present(stage, now):
                actions += self._lose(f"stage {stage} has been silent for {now - member.seen:.0f} s")
        actions += self._advance(now)
        if now >= self._next_beat:
            self._next_beat = now + BEAT_SECONDS
            for stage, member in self._members.items():
                late = self.phase is Phase.JOINING and member.joined != self.epoch
                actions.append(self._formation(stage) if late else self._beat(member.peer, stage))
        return actions

    def _register(self, peer: bytes, offer: Register, now: float) -> list[Action]:
        if objection := self._objection(peer, offer, now):
            if offer.stage < self.stages:  # else a liar could fill the memory
                self._refusals[offer.stage] = objection
            return [Send(peer, Refused(objection))]
        self._refusals.pop(offer.stage, None)
        known = self._members.get(offer.stage)
        actions: list[Action] = []
        if known is not None and known.offer == offer:
            known.peer, known.seen = peer, now
        else:
            if known is not None:
                self._replaced.add(known.offer.incarnation)
                actions += self._lose(f"stage {offer.stage} was started again")
            self._replaced.discard(offer.incarnation)
            self._members[offer.stage] = _Member(offer, peer, now)
        return [*actions, self._beat(peer, offer.stage), *self._advance(now)]

    def _objection(self, peer: bytes, offer: Register, now: float) -> str:
        """Why this stage cannot be a member; empty when it can."""
        if offer.incarnation.encode() != peer:
            return f"stage {offer.stage} was registered on a connection that is not its own"
        if offer.revision != self.revision:
            return f"revision {offer.revision}, but the pipeline has {self.revision}: it was made from another manifest"
        if offer.stages != self.stages or offer.stage >= self.stages:
            return f"stage {offer.stage} of {offer.stages}, but the pipeline has stages 0 to {self.stages - 1}"
        if offer.slots < self.least_slots:
            return f"stage {offer.stage} offers {offer.slots} KV slots, but one request may need {self.least_slots}"
        if not is_address(offer.address):
            return f"stage {offer.stage} says it is at {offer.address!r}, not tcp://host:port"
        if offer.incarnation in self._replaced and self._present(offer.stage, now):
            return f"stage {offer.stage} is taken by a process that was started later"
        return self._misfit(offer, now)

    def _misfit(self, offer: Register, now: float) -> str:
        stage, (start, stop) = offer.stage, offer.layers
        if stage == 0 and start != 0:
            return f"stage 0 begins with layer {start}, not 0"
        if stage == self.stages - 1 and self.num_layers not in (None, stop):
            return f"stage {stage} ends before layer {stop}, but the model has {self.num_layers}"
        for other, member in self._members.items():
            if other == stage or not self._present(other, now):
                continue
            theirs = member.offer
            if (theirs.width, theirs.dtype) != (offer.width, offer.dtype):
                return (
                    f"stage {stage} has width {offer.width} in {offer.dtype}, "
                    f"but stage {other} has {theirs.width} in {theirs.dtype}"
                )
            if (other == stage - 1 and theirs.layers[1] != start) or (other == stage + 1 and theirs.layers[0] != stop):
                kind = "overlap" if max(start, theirs.layers[0]) < min(stop, theirs.layers[1]) else "do not meet"
                return f"layers {start}-{stop} of stage {stage} and {_span(theirs)} of stage {other} {kind}"
        return ""

    def _present(self, stage: int, now: float) -> bool:
        return stage in self._members and now - self._members[stage].seen <= self.silence

    def _joined(self, member: _Member) -> bool:
        return self.phase is not Phase.GATHERING and member.joined == self.epoch

    def _lose(self, reason: str) -> list[Action]:
        if self.phase is Phase.GATHERING:
            return []
        self.phase = Phase.GATHERING
        return [EpochLost(self.epoch, reason)]

    def _advance(self, now: float) -> list[Action]:
        """Take the next step of the diagram above, if its condition holds."""
        if self.phase is Phase.GATHERING and all(self._present(stage, now) for stage in range(self.stages)):
            self.epoch += 1
            self.phase = Phase.JOINING
            begun = EpochBegun(self.epoch, self._slots(), self._members[0].offer.address)
            return [begun, *(self._formation(stage) for stage in range(self.stages))]
        if self.phase is Phase.JOINING and all(member.joined == self.epoch for member in self._members.values()):
            self.phase = Phase.LIVE
            return [EpochLive(self.epoch, self._slots())]
        return []

    def _slots(self) -> int:
        offered = min(member.offer.slots for member in self._members.values())
        return offered if self.most_slots is None else min(offered, self.most_slots)

    def _formation(self, stage: int) -> Send:
        last = stage == self.stages - 1
        successor = self.verdict_address if last else self._members[stage + 1].offer.address
        return Send(self._members[stage].peer, Formation(self.epoch, successor, self._slots()))

    def _beat(self, peer: bytes, stage: int) -> Send:
        return Send(peer, Heartbeat(self.epoch, stage, 0))


def _listed(stages: list[int]) -> str:
    return ", ".join(str(stage) for stage in stages)


def _span(offer: Register) -> str:
    return f"{offer.layers[0]}-{offer.layers[1]}"
