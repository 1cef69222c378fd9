"""A request that stages die of is found and ended; all others are answered exactly."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest

from benchmarks.simulation import Simulation
from draft_service.generation import GenerationRequest
from draft_service.schedule.scheduler import Limits, Scheduler
from draft_service.schedule.suspicion import CLEARED, GUILTY, SPECULATES, SUSPECT, Suspicion
from pipedec.errors import UnfinishableError
from pipedec.policy import PolicyName, make_policy
from pipedec.wire.codec import Activation
from pipedec.wire.messages import Batch, Decision
from stage_service.worker import StageResult
from tests.symbolic import Prefix, SymbolicDraft, SymbolicStage, continuation

POLICIES: tuple[PolicyName, ...] = ("none", "static-tree", "pipedec", "adaptive")
STAGES, SLOTS, LENGTH = 3, 256, 30
CULPRIT = 2
PROMPTS = {0: (1, 2, 3), 1: (4, 5), CULPRIT: (6, 7, 8, 9), 3: (10,)}

POISON_OF_NOBODY: Prefix = (-2,)


class Killed(Exception):
    """What a process that dies would look like from within."""


class MortalStage(SymbolicStage):
    """Dies of computing one prefix."""

    def __init__(self, is_first: bool, is_last: bool) -> None:
        super().__init__(is_first, is_last)
        self.poison = POISON_OF_NOBODY
        self.seen: dict[Prefix, None] = {}

    def step(self, batch: Batch, activation: Activation | None) -> StageResult:
        result = super().step(batch, activation)
        self.seen |= dict.fromkeys(self._span._kv)
        if self.poison in self.seen:
            self.seen.clear()  # the process that follows has computed nothing
            raise Killed
        return result


class SpoiltStage(SymbolicStage):
    """The last one. A row of one prefix overflows, and spoils all rows of its request in the batch."""

    def __init__(self, poison: Prefix) -> None:
        super().__init__(is_first=False, is_last=True)
        self._poison = poison

    def step(self, batch: Batch, activation: Activation | None) -> StageResult:
        result = super().step(batch, activation)
        assert result.verdict is not None
        spoilt = {row.request for row in batch.rows if self._span._kv[row.slot] == self._poison}
        sound = tuple(each for each in result.verdict.decisions if each.request not in spoilt)
        failed = tuple(Decision(request, (), (), "the logits are nan") for request in spoilt)
        return replace(result, verdict=replace(result.verdict, decisions=sound + failed))


def pipeline(policy: PolicyName, poison: Prefix, quality: float = 0.7) -> Simulation:
    scheduler = Scheduler(Limits(STAGES, poison=True), make_policy(policy, width=6, children=3, depth=3))
    stages = [MortalStage(index == 0, index == STAGES - 1) for index in range(STAGES)]
    stages[1].poison = poison
    return simulate(scheduler, stages, policy, quality)


def simulate(scheduler: Scheduler, stages: Sequence[SymbolicStage], policy: PolicyName, quality: float) -> Simulation:
    draft = SymbolicDraft(quality, children=3) if policy != "none" else None
    return Simulation(scheduler, stages, draft, SLOTS, after_event=scheduler.check_integrity)


def overflowing(policy: PolicyName, poison: Prefix) -> Simulation:
    scheduler = Scheduler(Limits(STAGES, poison=True), make_policy(policy, width=6, children=3, depth=3))
    stages = [SymbolicStage(is_first=True, is_last=False), SymbolicStage(False, False), SpoiltStage(poison)]
    return simulate(scheduler, stages, policy, 0.7)


def wrong_prediction(policy: PolicyName) -> Prefix:
    """Something that a sound run computes of the culprit, and that does not come true."""
    prompt = PROMPTS[CULPRIT]
    path = (*prompt, *continuation(prompt, LENGTH))
    sound = pipeline(policy, POISON_OF_NOBODY)
    run(sound, PROMPTS)
    mortal = sound._stages[1].worker
    assert isinstance(mortal, MortalStage)
    wrong = [prefix for prefix in mortal.seen if prefix[: len(prompt)] == prompt and prefix != path[: len(prefix)]]
    return wrong[len(wrong) // 2]


def run(simulation: Simulation, prompts: dict[int, Prefix]) -> tuple[int, list[int]]:
    """Decode all; how many epochs were lost, and the requests that failed."""
    load = {key: GenerationRequest(prompt, LENGTH) for key, prompt in prompts.items()}
    lost, failed = 0, []
    while True:
        try:
            simulation.run(load)
        except Killed:
            lost += 1
            assert lost < 50, "it goes on for ever"
            simulation.scheduler.stop_epoch()
            for key, error in simulation.scheduler.take_failed():
                assert isinstance(error, UnfinishableError)
                failed.append(key)
            simulation.form(SLOTS)
            load = {}
        else:
            assert simulation.scheduler.num_slots_used == 0
            return lost, failed


def decide(simulation: Simulation, load: dict[int, GenerationRequest], tokens: int) -> None:
    """Go on until so many more tokens are decided."""

    def told() -> int:
        return sum(len(each.tokens) for each in simulation.generated.values())

    enough = told() + tokens
    simulation.run(load, until=lambda: told() >= enough)


def check_others(simulation: Simulation, prompts: dict[int, Prefix], *but: int) -> None:
    for key in prompts.keys() - set(but):
        assert simulation.generated[key].tokens == continuation(prompts[key], LENGTH)


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("after", [-1, 0, 13])
@pytest.mark.parametrize("policy", POLICIES)
def test_the_culprit_is_ended_and_nobody_else(policy: PolicyName, after: int, alone: bool) -> None:
    """Whether it kills by its prompt, its first token, or a later one."""
    prompts = {CULPRIT: PROMPTS[CULPRIT]} if alone else PROMPTS
    expected = continuation(PROMPTS[CULPRIT], LENGTH)
    poison = (*PROMPTS[CULPRIT], *expected[:after]) if after >= 0 else PROMPTS[CULPRIT][:2]
    simulation = pipeline(policy, poison)
    lost, failed = run(simulation, prompts)
    assert failed == [CULPRIT]
    assert simulation.generated[CULPRIT].tokens == expected[: max(0, after)]
    assert lost <= SUSPECT + GUILTY + 2  # two for what came true of the predictions that it first died of
    check_others(simulation, prompts, CULPRIT)


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_a_prediction_that_kills_costs_its_request_no_more_than_its_predictions(policy: PolicyName) -> None:
    simulation = pipeline(policy, wrong_prediction(policy))
    lost, failed = run(simulation, PROMPTS)
    assert failed == []
    assert 0 < lost <= SPECULATES
    check_others(simulation, PROMPTS)


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_a_prediction_that_overflows_costs_its_request_no_more_than_its_predictions(policy: PolicyName) -> None:
    simulation = overflowing(policy, wrong_prediction(policy))
    simulation.run({key: GenerationRequest(prompt, LENGTH) for key, prompt in PROMPTS.items()})
    assert simulation.scheduler.take_failed() == []
    assert simulation.scheduler.counts.resumptions == 0  # of epochs: none was lost
    assert simulation.scheduler.num_slots_used == 0
    check_others(simulation, PROMPTS)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_target_that_overflows_fails_its_request_and_no_other(policy: PolicyName) -> None:
    expected = continuation(PROMPTS[CULPRIT], LENGTH)
    simulation = overflowing(policy, (*PROMPTS[CULPRIT], *expected[:9]))
    with pytest.raises(UnfinishableError, match="the logits are nan"):
        simulation.run({key: GenerationRequest(prompt, LENGTH) for key, prompt in PROMPTS.items()})
    simulation.run({})
    told = simulation.generated[CULPRIT].tokens
    assert told == expected[: len(told)]
    assert len(told) <= 9
    check_others(simulation, PROMPTS, CULPRIT)


@pytest.mark.parametrize("seed", range(6))
def test_faults_of_another_cause_end_nobody(seed: int) -> None:
    """However often an epoch is lost, as long as each leaves the time for a token."""
    rng = random.Random(seed)
    simulation = pipeline("adaptive", POISON_OF_NOBODY)
    load = {key: GenerationRequest(prompt, LENGTH) for key, prompt in PROMPTS.items()}
    for _ in range(25):
        decide(simulation, load, rng.randint(1, 12))
        load = {}
        simulation.scheduler.stop_epoch()
        assert simulation.scheduler.take_failed() == []
        simulation.form(SLOTS)
    simulation.run({})
    check_others(simulation, PROMPTS)


def test_suspects_prove_themselves_one_after_the_other() -> None:
    """The epoch is lost twice at the start: all are suspects, and each must decide some tokens alone."""
    simulation = pipeline("adaptive", POISON_OF_NOBODY)
    scheduler = simulation.scheduler
    load = {key: GenerationRequest(prompt, LENGTH) for key, prompt in PROMPTS.items()}
    for _ in range(SUSPECT):
        simulation.run(load, until=lambda: scheduler.in_flight > STAGES)
        scheduler.stop_epoch()
        simulation.form(SLOTS)
        load = {}
    seen = []
    while any(len(simulation.generated[key].tokens) < CLEARED for key in PROMPTS):
        decide(simulation, {}, 1)
        suspects = [each.key for each in scheduler.running.values() if each.suspicion.is_suspect]
        if suspects:
            assert suspects == [each.key for each in scheduler.running.values()]
            seen += [key for key in suspects if key not in seen]
    assert seen == list(PROMPTS)
    simulation.run({})
    check_others(simulation, PROMPTS)


def test_tokens_speak_for_a_request_and_losses_against_it() -> None:
    suspicion = Suspicion()
    suspicion.lose(5, since_start=5, alone=True)
    assert not suspicion.is_suspect
    suspicion.decide(5 + CLEARED - 1)
    suspicion.lose(5 + CLEARED - 1, since_start=CLEARED - 1, alone=False)
    assert suspicion.is_suspect
    assert not suspicion.speculates
    suspicion.decide(5 + 2 * CLEARED)
    assert not suspicion.is_suspect
    assert suspicion.speculates
    for _ in range(GUILTY):
        assert not suspicion.is_guilty
        suspicion.lose(30, since_start=0, alone=True)
    assert suspicion.is_guilty
    suspicion.decide(30 + CLEARED)
    assert not suspicion.speculates, f"{SPECULATES} losses in all"
