"""Drafts of every kind for a target: always right, always wrong, random, noisy. All from the target's own logits."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.local import build_drafter
from draft_service.draft.drafter import Drafter
from pipedec.model.execution import Execution
from pipedec.wire.messages import Batch

KINDS = ("right", "wrong", "random", "noisy")


def make_draft(
    kind: str, target: Path, num_slots: int, children: int = 4, execution: Execution | None = None, device: str = "cpu"
) -> Drafter:
    generator = torch.Generator().manual_seed(0)

    def adjust(batch: Batch, logits: torch.Tensor) -> torch.Tensor:
        match kind:
            case "wrong":  # the target's choice comes last
                return logits.scatter(-1, logits.argmax(-1, keepdim=True), -1e4)
            case "random":
                return torch.randn(logits.shape, generator=generator)
            case "noisy":
                return logits + 2.0 * torch.randn(logits.shape, generator=generator)
        raise ValueError(kind)

    changed = None if kind == "right" else adjust
    return build_drafter(target, num_slots, children=children, adjust=changed, execution=execution, device=device)
