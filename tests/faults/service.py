"""A head and its stages as threads of this process: everything is real but the models."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from prometheus_client import CollectorRegistry

from draft_service.draft.drafter import Proposer
from draft_service.formation import Members
from draft_service.generation import GenerationRequest
from draft_service.loop import Head, Links
from draft_service.schedule.scheduler import Limits, Output, Scheduler
from draft_service.transit import Patience
from pipedec.errors import PipeDecError
from pipedec.health import Health
from pipedec.metrics.stage import StageMetrics
from pipedec.policy import PolicyName, make_policy
from pipedec.wire.codec import Activation
from pipedec.wire.messages import Batch, Register
from pipedec.wire.sockets import INSECURE, Bind, ControlServer, Transport, batch_receiver, verdict_receiver
from stage_service.loop import StageLoop
from stage_service.worker import Progress, StageResult
from tests.sockets import DEADLINE, until
from tests.symbolic import SymbolicStage

STAGES, SLOTS = 2, 128
Hook = Callable[[Batch, StageResult], StageResult]


class HookedStage(SymbolicStage):
    """A symbolic stage; `hook` sees, and may change, what it makes of each batch."""

    def __init__(self, index: int) -> None:
        super().__init__(index == 0, index == STAGES - 1)
        self.hook: Hook = lambda batch, result: result

    def step(self, batch: Batch, activation: Activation | None, progress: Progress | None = None) -> StageResult:
        return self.hook(batch, super().step(batch, activation))


class Service:
    """Forms, answers `ask`, and ends with `close`."""

    def __init__(
        self,
        draft: Proposer | None = None,
        policy: PolicyName = "none",
        patience: Patience | None = None,
        draft_patience: Patience | None = None,
        slots: int = SLOTS,
    ) -> None:
        self._slots = slots
        self._stack = ExitStack()
        transport = self._stack.enter_context(Transport(INSECURE))
        control = ControlServer(transport, Bind("127.0.0.1"))
        verdicts = verdict_receiver(transport, Bind("127.0.0.1"), credits=64)
        self.verdict_address, self.control_address = verdicts.address, control.address
        members = Members(STAGES, "r1", verdicts.address, time.time_ns() // 1_000_000)
        self.scheduler = Scheduler(Limits(STAGES, poison=True), make_policy(policy, width=4, children=3, depth=3))
        links = Links(transport, control, verdicts)
        self.head = Head(self.scheduler, members, links, draft, patience=patience, draft_patience=draft_patience)
        self._answers: dict[int, queue.SimpleQueue[int | None]] = {}
        self.head.listen(self._deliver, self._fail)
        self.failures: list[tuple[PipeDecError, int | None]] = []
        self.stages = [HookedStage(index) for index in range(STAGES)]
        self.offers = [self._start_stage(index, stage) for index, stage in enumerate(self.stages)]
        thread = threading.Thread(target=self.head.run)
        thread.start()
        self._stack.callback(thread.join, DEADLINE)
        self._stack.callback(self.head.stop)
        until(lambda: self.head.status.ready)

    def _start_stage(self, index: int, stage: HookedStage) -> Register:
        transport = self._stack.enter_context(Transport(INSECURE))
        receiver = batch_receiver(transport, Bind("127.0.0.1"), row_bytes=4 if index else None, credits=64)
        span = (index, index + 1)
        offer = Register(index, STAGES, span, "r1", receiver.address, self._slots, f"s{index}", 1, "float32")
        metrics = StageMetrics(CollectorRegistry(), index)
        loop = StageLoop(stage, offer, transport, receiver, self.control_address, metrics, Health())
        thread = threading.Thread(target=loop.run)
        thread.start()
        self._stack.callback(thread.join, DEADLINE)
        self._stack.callback(loop.stop)
        return offer

    def begin(self, key: int, prompt: tuple[int, ...], max_tokens: int) -> None:
        self._answers[key] = queue.SimpleQueue()
        self.head.submit(key, GenerationRequest(prompt, max_tokens))

    def answer(self, key: int) -> list[int]:
        """All tokens of a request, once it is finished."""
        return list(iter(lambda: self._answers[key].get(timeout=DEADLINE), None))

    def close(self) -> None:
        self._stack.close()

    def _deliver(self, outputs: Sequence[Output]) -> None:
        for key, event in outputs:
            self._answers[key].put(event.token)
            if event.finish is not None:
                self._answers[key].put(None)

    def _fail(self, error: PipeDecError, key: int | None) -> None:
        self.failures.append((error, key))
