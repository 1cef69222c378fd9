"""In any order of starts, deaths, losses and replays the members agree, and a pipeline that is whole forms again."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from draft_service.formation import Action, EpochBegun, EpochLive, EpochLost, Members, Send
from pipedec.wire.codec import FromStage
from pipedec.wire.messages import BEAT_SECONDS, Formation, Heartbeat, Joined, Register
from stage_service.session import Session

SILENCE = 10.0
FIRST = 100


@dataclass
class Process:
    """A stage process: its session, and what is on the way to and from it."""

    register: Register
    session: Session = field(init=False)
    alive: bool = True
    inbox: list[object] = field(default_factory=list)
    outbox: list[FromStage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session = Session(self.register)

    @property
    def peer(self) -> bytes:
        return self.register.incarnation.encode()

    def read(self, now: float) -> None:
        for message in self.inbox:
            self.session.hear(message, now)
            if isinstance(message, Formation):
                self.outbox.append(self.session.join(message.epoch))
        self.inbox.clear()
        self.outbox += self.session.due(now, 0, ())


class FormationMachine(RuleBasedStateMachine):
    @initialize(stages=st.integers(1, 4))
    def begin(self, stages: int) -> None:
        self.now = 0.0
        self.stages = stages
        self.members = Members(stages, "r", "tcp://head:1", FIRST, silence=SILENCE)
        self.processes: dict[int, Process] = {}  # the newest of each stage
        self.dead: list[Process] = []
        self.sent: list[tuple[bytes, FromStage]] = []
        self.epochs: list[int] = []
        self.open_epoch: int | None = None
        self.started = 0
        self.recover()

    def obey(self, actions: list[Action]) -> None:
        pending = list(actions)
        while pending:
            match pending.pop(0):
                case EpochBegun(epoch, slots, address):
                    assert self.open_epoch is None
                    assert not self.epochs or epoch > self.epochs[-1]
                    assert slots == min(process.register.slots for process in self.processes.values())
                    assert address == self.processes[0].register.address
                    self.epochs.append(epoch)
                    self.open_epoch = epoch
                case EpochLive(epoch, _):
                    assert self.open_epoch == epoch
                    for process in self.processes.values():
                        assert (process.peer, Joined(epoch, process.register.stage)) in self.sent
                case EpochLost(epoch, reason):
                    assert self.open_epoch == epoch
                    assert reason
                    self.open_epoch = None
                case Send(peer, message):
                    pending += self.deliver(peer, message)

    def deliver(self, peer: bytes, message: object) -> list[Action]:
        for process in self.processes.values():
            if process.peer == peer and process.alive:
                if isinstance(message, Formation):
                    self.check_successor(process.register.stage, message)
                process.inbox.append(message)
                return []
        return self.members.unreachable(peer, self.now)

    def check_successor(self, stage: int, formation: Formation) -> None:
        last = stage == self.stages - 1
        following = None if last else self.processes[stage + 1].register
        assert formation.successor == ("tcp://head:1" if following is None else following.address)

    def hand_over(self, process: Process) -> None:
        for message in process.outbox:
            self.sent.append((process.peer, message))
            self.obey(self.members.receive(process.peer, message, self.now))
        process.outbox.clear()

    @rule(stage=st.integers(0, 3), slots=st.integers(1, 9))
    def start(self, stage: int, slots: int) -> None:
        """A stage's process begins, in place of one that may or may not be dead yet; its registration arrives."""
        stage %= self.stages
        self.started += 1
        name = f"{stage}-{self.started}"
        if stage in self.processes:
            self.dead.append(self.processes[stage])
        register = Register(stage, self.stages, (stage, stage + 1), "r", f"tcp://{name}:1", slots, name, 8, "float32")
        self.processes[stage] = Process(register)
        self.processes[stage].outbox.append(register)
        self.hand_over(self.processes[stage])

    @rule(stage=st.integers(0, 3))
    def die(self, stage: int) -> None:
        if stage in self.processes:
            self.processes[stage].alive = False

    @rule(stage=st.integers(0, 3))
    def leave(self, stage: int) -> None:
        """A stage finds a hole in its batches."""
        if stage in self.processes:
            self.processes[stage].session.leave()

    @rule(lost=st.sets(st.integers(0, 3), max_size=2))
    def work(self, lost: set[int]) -> None:
        """The stages read what came and say what is due; of some, the connection loses it."""
        for stage, process in self.processes.items():
            if process.alive:
                process.read(self.now)
                if stage in lost:
                    process.outbox.clear()
                self.hand_over(process)

    @rule(seconds=st.sampled_from([0.1, BEAT_SECONDS, SILENCE / 2, 2 * SILENCE]))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.obey(self.members.tick(self.now))

    @rule()
    def abandon(self) -> None:
        self.obey(self.members.abandon("the head says so", self.now))

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def replay(self, data: st.DataObject) -> None:
        """A copy of an old message arrives. It changes nothing: not the epoch, and not whether it is live."""
        peer, message = data.draw(st.sampled_from(self.sent))
        current = {process.peer for process in self.processes.values()}
        if isinstance(message, Heartbeat | Joined) and (
            message.epoch in (0, self.members.epoch) or peer not in current
        ):
            return  # of this epoch, or of none: then it is no replay but news
        if isinstance(message, Register) or peer not in current:
            return
        before = (self.members.epoch, self.members.live)
        member_was_missing = self.members.waiting_for(self.now).startswith("waiting for stage")
        self.obey(self.members.receive(peer, message, self.now))
        assert (self.members.epoch, self.members.live) == before or member_was_missing

    @invariant()
    def the_head_never_works_with_an_epoch_that_it_has_not_begun(self) -> None:
        assert self.members.live <= (self.open_epoch == self.members.epoch)

    @rule()
    def recover(self) -> None:
        """With all processes up and nothing lost, the pipeline is live within a few beats."""
        for stage in range(self.stages):
            if stage not in self.processes or not self.processes[stage].alive:
                self.start(stage, 5)
        for _ in range(4):
            self.now += BEAT_SECONDS
            for process in self.processes.values():
                process.read(self.now)
                self.hand_over(process)
            self.obey(self.members.tick(self.now))
        assert self.members.live, self.members.waiting_for(self.now)
        assert {process.session.epoch for process in self.processes.values()} == {self.members.epoch}

    def teardown(self) -> None:
        self.recover()


FormationMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)
TestFormation = FormationMachine.TestCase
