"""`python -m benchmarks.wallclock.head`: the draft service, with a draft of chosen quality and speed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace

from benchmarks.replayed_draft import ReplayedDraft
from benchmarks.wallclock.scene import Scene, hold
from draft_service.__main__ import run
from draft_service.assembly import load_models
from draft_service.draft.drafter import Proposer
from draft_service.schedule.guidance import UNGUIDED, Guides
from pipedec.config import DraftConfig
from pipedec.garbage import collect_rarely
from pipedec.logs import configure_draft
from pipedec.proposals import Proposals
from pipedec.wire.messages import Batch


class HeldDraft:
    """A draft that answers when the emulated device's time for its rows is over, not before."""

    def __init__(self, inner: Proposer, seconds: Callable[[int], float]) -> None:
        self._inner, self._seconds = inner, seconds
        self.reset = inner.reset

    def propose(self, batch: Batch, guides: Guides = UNGUIDED) -> Proposals:
        start = time.monotonic()
        proposals = self._inner.propose(batch, guides)
        hold(start, self._seconds(batch.num_rows))
        return proposals


def main() -> None:
    config, scene = DraftConfig.from_env(), Scene.from_environment()
    configure_draft(config)
    models = load_models(config)
    if models.draft is not None:
        emulated = ReplayedDraft(scene.served(), scene.noise, scene.children)
        models = replace(models, draft=HeldDraft(emulated, scene.device.draft_seconds))
    collect_rarely()
    asyncio.run(run(config, models))


if __name__ == "__main__":
    main()
