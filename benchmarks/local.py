"""A real model's stages and draft in this process, for the simulation."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from draft_service.draft.drafter import Adjust, Drafter
from pipedec.model.execution import Execution
from pipedec.model.executor import SpanExecutor
from pipedec.model.grammar import Grammars
from pipedec.model.loader import SpanModel
from pipedec.partition import balanced, estimate_costs
from stage_service.worker import StageWorker


def build_stages(
    path: Path,
    num_stages: int,
    num_slots: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    execution: Execution | None = None,
    grammars: Grammars | None = None,
) -> list[StageWorker]:
    """The model at `path`, split as `pipedec up` splits it, as stage workers."""
    costs = estimate_costs(json.loads((path / "config.json").read_text()))
    spans = balanced(costs, num_stages)
    models = [SpanModel.load(path, span, dtype=dtype, device=device) for span in spans]
    return [StageWorker(SpanExecutor(model, num_slots, execution), model.last, grammars) for model in models]


def build_drafter(
    path: Path,
    num_slots: int,
    *,
    layers: int | None = None,
    children: int = 16,
    adjust: Adjust | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    execution: Execution | None = None,
    ends: Path | None = None,
) -> Drafter:
    """A draft from the model at `path`: its first `layers` with its own norm and head, or all of it; with the embedding
    of the model at `ends` if it has none."""
    depth = layers or len(estimate_costs(json.loads((path / "config.json").read_text())).layers)
    model = SpanModel.load(path, (0, depth), dtype=dtype, device=device, first=True, last=True, ends=ends)
    execution = execution or Execution.on(model.device, invariant=False)
    return Drafter(SpanExecutor(model, num_slots, execution), children, adjust)
