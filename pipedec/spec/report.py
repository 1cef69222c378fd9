"""What a draft pod tells of its pipeline at `/pipeline`; the operator reads it into the resource's status. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field

from pipedec.spec.pipeline import MAX_STAGES, LayerRange, Span

PATH = "/pipeline"
MAX_TEXT = 1000  # characters of a sentence; longer ones are cut

Sentence = Annotated[str, Field(max_length=MAX_TEXT)]


class PipelineReport(BaseModel):
    """How the layers are divided, and what is amiss. A field that a later version adds is skipped."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    layers: Annotated[tuple[LayerRange, ...], Field(max_length=MAX_STAGES)]
    """Layers of every stage, first and last included."""
    reason: Sentence = ""
    """Why the pipeline does not answer; empty when it does."""
    degraded: Sentence = ""
    """Why it decodes without the draft model that was asked for; empty when it does not."""

    @classmethod
    def of(cls, split: Sequence[Span], reason: str, degraded: str) -> Self:
        layers = tuple(f"{start}-{end - 1}" for start, end in split)
        return cls(layers=layers, reason=reason[:MAX_TEXT], degraded=degraded[:MAX_TEXT])
