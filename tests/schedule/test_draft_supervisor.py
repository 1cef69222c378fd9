"""What the head learns of its draft model."""

from __future__ import annotations

import queue
from collections.abc import Callable
from contextlib import closing

from draft_service.draft.supervisor import DraftSupervisor
from draft_service.generation import GenerationRequest
from draft_service.schedule.guidance import UNGUIDED, Guides
from draft_service.schedule.scheduler import Limits, Scheduler
from pipedec.cost import COLD_STEPS, StepCost, flat_cost
from pipedec.policy import make_policy
from pipedec.proposals import Proposals
from pipedec.wire.messages import Batch
from tests.sockets import DEADLINE


class Counting:
    """Always proposes the next number."""

    def reset(self, num_slots: int) -> None:
        self.runs: list[tuple[int, int]] = []  # rows of the tree and of the prompt

    def propose(self, batch: Batch, guides: Guides = UNGUIDED) -> Proposals:
        self.runs.append((len(batch.rows), batch.num_prefill))
        return Proposals.of([[(token + 1, -0.1)] for token in batch.rows.token.tolist()])


def test_runs_are_timed_by_their_rows_and_those_with_a_prompt_are_not() -> None:
    notes: queue.Queue[Callable[[], None]] = queue.Queue()
    cost, draft = StepCost(), Counting()
    scheduler = Scheduler(Limits(stages=1), make_policy("adaptive", draft_cost=cost))
    with closing(DraftSupervisor(draft, scheduler, notes.put, cost=cost)) as supervisor:
        scheduler.start_epoch(0, 64)
        supervisor.begin(64)
        scheduler.submit(0, GenerationRequest((1, 2, 3), max_tokens=20))
        scheduler.compose()
        for _ in range(COLD_STEPS + 1):
            assert cost(1) == flat_cost(1)
            supervisor.work()
            notes.get(timeout=DEADLINE)()
        assert draft.runs == [(1, 2), (1, 0), (1, 0)]
        supervisor.work()
        notes.get(timeout=DEADLINE)()
        assert 0 < cost(1) != flat_cost(1)
