"""A head that only forms pipelines, sends the batches it is given, and remembers what it heard."""

from __future__ import annotations

import time
from collections.abc import Iterable

from draft_service.formation import Action, EpochBegun, Members, Send
from pipedec.wire.codec import FromHead, FromStage, encode
from pipedec.wire.messages import Batch, Verdict
from pipedec.wire.sockets import Bind, ControlServer, DataSender, Poller, Transport, verdict_receiver
from tests.sockets import DEADLINE, receive


class TestHead:
    """Blocking: whatever it waits for fails the test after a while. `close` also closes the transport."""

    __test__ = False

    def __init__(self, transport: Transport, stages: int, revision: str = "r1", port: int = 0) -> None:
        self.control = ControlServer(transport, Bind("127.0.0.1", port))
        self.verdicts = verdict_receiver(transport, Bind("127.0.0.1"), credits=64)
        first = time.time_ns() // 1_000_000
        self.members = Members(stages, revision, self.verdicts.address, first)
        self.heard: list[FromStage] = []
        self._transport, self._poller = transport, Poller(self.control)
        self.sender: DataSender | None = None

    def form(self, after: int = 0) -> int:
        """Wait for an epoch later than `after` to be live; the epoch."""
        deadline = time.monotonic() + DEADLINE
        while not (self.members.live and self.members.epoch > after):
            assert time.monotonic() < deadline, self.members.waiting_for(time.monotonic())
            self.turn()
        assert self.sender is not None
        assert self.sender.connected(DEADLINE)
        return self.members.epoch

    def turn(self) -> None:
        self._poller.wait(0.02)
        while (received := self.control.receive()) is not None:
            self.heard.append(received[1])
            self.obey(self.members.receive(*received, time.monotonic()))
        self.obey(self.members.tick(time.monotonic()))

    def hear(self, kind: type[FromStage]) -> FromStage:
        """The newest message of this kind, heard from now on."""
        self.heard.clear()
        deadline = time.monotonic() + DEADLINE
        while not (found := [message for message in self.heard if isinstance(message, kind)]):
            assert time.monotonic() < deadline, f"no {kind.__name__} came"
            self.turn()
        return found[-1]

    def tell(self, message: FromHead) -> None:
        for peer in self.members.peers:
            assert self.control.send(peer, message)

    def send(self, *batches: Batch) -> None:
        assert self.sender is not None
        for batch in batches:
            assert self.sender.send(encode(batch))

    def verdict(self) -> Verdict:
        return receive(self.verdicts, self.verdicts.receive)

    def close(self) -> None:
        """Vanish without a word."""
        self._transport.close()

    def obey(self, actions: Iterable[Action]) -> None:
        for action in actions:
            if isinstance(action, EpochBegun):
                if self.sender is not None:
                    self.sender.close()
                self.sender = DataSender(self._transport, action.address, credits=64)
            elif isinstance(action, Send) and not self.control.send(action.peer, action.message):
                self.obey(self.members.unreachable(action.peer, time.monotonic()))
