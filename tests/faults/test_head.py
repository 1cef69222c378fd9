"""The head with a draft model that fails or dawdles, a stage that hangs, verdicts lost and repeated: same tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from draft_service.schedule.guidance import UNGUIDED, Guides
from draft_service.transit import Patience
from pipedec.proposals import Proposals
from pipedec.wire.codec import encode
from pipedec.wire.messages import Batch, Decision, Started, Verdict
from pipedec.wire.sockets import INSECURE, ControlClient, DataSender, Transport
from stage_service.loop import StageLoop
from stage_service.worker import StageResult
from tests.faults.service import STAGES, Service
from tests.logs import logged
from tests.sockets import DEADLINE, until
from tests.symbolic import SymbolicDraft, continuation

PROMPT, LENGTH = (3, 1, 4, 1, 5), 40
Start = Callable[..., Service]


@pytest.fixture
def start() -> Iterator[Start]:
    services: list[Service] = []

    def begin(**settings: object) -> Service:
        services.append(Service(**settings))  # type: ignore[arg-type]
        return services[-1]

    yield begin
    for service in services:
        service.close()
        assert service.scheduler.num_slots_used == 0
        assert service.failures == []


def check_answer(service: Service, key: int) -> None:
    assert service.answer(key) == continuation(PROMPT, LENGTH)


def ask(service: Service, key: int) -> None:
    service.begin(key, PROMPT, LENGTH)
    check_answer(service, key)


class FailingDraft(SymbolicDraft):
    """Always right, but for the calls while it is `broken`; while it is `held` it does not answer."""

    def __init__(self) -> None:
        super().__init__(1.0, children=3)
        self.broken: set[str] = set()
        self.free = threading.Event()
        self.free.set()

    def reset(self, num_slots: int) -> None:
        if "reset" in self.broken:
            raise RuntimeError("no memory")
        super().reset(num_slots)

    def propose(self, batch: Batch, guides: Guides = UNGUIDED) -> Proposals:
        assert self.free.wait(DEADLINE)
        if "propose" in self.broken:
            raise RuntimeError("no memory")
        return super().propose(batch, guides)


@pytest.mark.parametrize("where", ["propose", "reset"])
def test_a_draft_model_that_fails_is_done_without_until_it_is_back(start: Start, where: str) -> None:
    draft = FailingDraft()
    service = start(draft=draft, policy="adaptive")
    ask(service, 1)
    assert service.scheduler.counts.hits
    draft.broken |= {"propose", where}
    ask(service, 2)
    until(lambda: service.head.status.degraded == "the draft model failed: no memory")
    assert service.head.status.ready
    assert service.head.state().degraded
    ask(service, 3)
    draft.broken.clear()
    until(lambda: not service.head.status.degraded)
    hits = service.scheduler.counts.hits
    ask(service, 4)
    assert service.scheduler.counts.hits > hits


def test_a_draft_model_that_does_not_answer_holds_nobody(start: Start) -> None:
    """Not even with the one policy that waits for its tree to be drafted before it sends anything."""
    draft = FailingDraft()
    service = start(draft=draft, policy="static-tree", draft_patience=Patience(floor=0.2, first=5.0))
    ask(service, 1)
    draft.free.clear()
    ask(service, 2)
    assert service.head.status.degraded.startswith("the draft model has not answered for ")
    draft.free.set()
    until(lambda: not service.head.status.degraded)
    ask(service, 3)


def test_a_stage_that_hangs_costs_its_epoch_long_before_it_counts_as_silent(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    service = start(patience=Patience(floor=0.3, first=5.0))
    ask(service, 1)
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(batch: Batch, result: StageResult) -> StageResult:
        if batch.step == 60 and not goes_on.is_set():
            hangs.set()
            assert goes_on.wait(DEADLINE)
        return result

    epoch = service.head.status.epoch
    service.stages[1].hook = hang
    service.begin(2, PROMPT, LENGTH)
    service.begin(3, PROMPT, LENGTH)
    assert hangs.wait(DEADLINE)
    until(lambda: not service.head.status.ready)
    service.begin(4, PROMPT, LENGTH)  # it waits like the others
    goes_on.set()
    for key in (2, 3, 4):
        check_answer(service, key)
    assert service.head.status.epoch > epoch
    assert "has not come back for" in logged(caplog)


def test_a_stage_without_a_usable_address_is_refused(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    """Also one that stays: with it, every epoch would be lost as soon as it began."""
    service = start()
    ask(service, 1)
    with Transport(INSECURE) as transport:
        stranger = ControlClient(transport, service.control_address, "stranger")
        stranger.send(replace(service.offers[0], address="nowhere", incarnation="stranger"))
        until(lambda: "says it is at 'nowhere', not tcp://host:port" in logged(caplog))
        ask(service, 2)
    assert service.scheduler.counts.epochs_lost == 0


def test_a_stage_without_memory_for_a_step_leaves_the_epoch_and_lives(
    start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """What it computed is gone, its weights are not; it joins the next epoch, and every request goes on."""
    service, lacking = start(), []

    def lack(batch: Batch, result: StageResult) -> StageResult:
        if batch.step == 12 and not lacking:
            lacking.append(batch.epoch)
            raise MemoryError("1 GiB wanted")
        return result

    service.stages[0].hook = lack
    service.begin(1, PROMPT, LENGTH)
    service.begin(2, PROMPT, LENGTH)
    check_answer(service, 1)
    check_answer(service, 2)
    assert service.head.status.epoch > lacking[0]
    assert service.scheduler.counts.epochs_lost == 1
    assert "1 GiB wanted" in logged(caplog)


def test_a_verdict_that_is_lost_leaves_no_hole(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    service = start()
    lost = threading.Event()

    def lose(batch: Batch, result: StageResult) -> StageResult:
        if batch.step == 9 and not lost.is_set() and result.verdict is not None:
            lost.set()
            return replace(result, verdict=replace(result.verdict, step=10, decisions=()))
        return result

    service.stages[STAGES - 1].hook = lose
    service.begin(1, PROMPT, LENGTH)
    service.begin(2, PROMPT, LENGTH)
    check_answer(service, 1)
    check_answer(service, 2)
    assert lost.is_set()
    assert "a verdict is lost: step 10 was answered, but step 9 was not" in logged(caplog)
    assert service.scheduler.counts.epochs_lost == 1


def test_a_stage_whose_calls_for_batches_are_lost_gets_them_all_the_same(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StageLoop, "_want_more", lambda self: None)
    service = start(draft=FailingDraft(), policy="adaptive")
    for key in range(3):
        ask(service, key)


def test_what_is_repeated_late_or_from_strangers_changes_nothing(start: Start) -> None:
    service = start()
    ask(service, 1)
    epoch = service.head.status.epoch
    wrong = (Decision(0, (1, 2, 3)),)
    with Transport(INSECURE) as transport:
        verdicts = DataSender(transport, service.verdict_address, credits=64)
        assert verdicts.connected(DEADLINE)
        for late in (epoch - 1, epoch, epoch + 1):
            assert verdicts.send(encode(Verdict(late, 0, wrong)))
        stranger = ControlClient(transport, service.control_address, "stranger")
        assert stranger.send(Started(epoch, 0, 2**40))
        assert stranger.send(service.offers[1])
        service.begin(2, PROMPT, LENGTH)
        until(lambda: service.scheduler.counts.stale_verdicts == 3)
        until(lambda: service.scheduler.counts.refused_registrations == 1)
        check_answer(service, 2)
        ask(service, 3)
    assert service.head.status.epoch == epoch
