"""`python -m benchmarks.faults.head FOLDER`: the draft process, whose draft model fails while FOLDER/fail is there, and
does not answer while FOLDER/slow is."""

from __future__ import annotations

import asyncio
import sys
import time
from dataclasses import replace
from pathlib import Path

from draft_service.__main__ import run
from draft_service.assembly import load_models
from draft_service.draft.drafter import Proposer
from draft_service.schedule.guidance import UNGUIDED, Guides
from pipedec.config import DraftConfig
from pipedec.logs import configure_draft
from pipedec.process_name import name_process
from pipedec.proposals import Proposals
from pipedec.wire.messages import Batch


class Unreliable:
    """A draft model, with switches."""

    def __init__(self, draft: Proposer, folder: Path) -> None:
        self._draft, self._folder = draft, folder

    def reset(self, num_slots: int) -> None:
        self._draft.reset(num_slots)

    def propose(self, batch: Batch, guides: Guides = UNGUIDED) -> Proposals:
        while (self._folder / "slow").exists():
            time.sleep(0.05)
        if (self._folder / "fail").exists():
            raise RuntimeError("the draft model was told to fail")
        return self._draft.propose(batch, guides)


def main() -> None:
    config = DraftConfig.from_env()
    configure_draft(config)
    name_process("draft")
    models = load_models(config)
    draft = Unreliable(models.draft, Path(sys.argv[1])) if models.draft is not None else None
    asyncio.run(run(config, replace(models, draft=draft)))


if __name__ == "__main__":
    main()
