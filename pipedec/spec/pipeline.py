"""How the target is split into stages, and what differs between their pods."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar

from pydantic import Field

from pipedec.spec.base import LAYER_RANGE, Rule, list_map, unless
from pipedec.spec.pod import PodSettings

MAX_STAGES = 64

LayerRange = Annotated[str, Field(pattern=LAYER_RANGE, max_length=9)]
Span = tuple[int, int]
"""Layers of one stage, half-open."""


class StageOverride(PodSettings):
    """What is different for one stage. A field given here replaces the pipeline's, whole."""

    stage: Annotated[int, Field(ge=0, le=MAX_STAGES - 1)]
    """Index of the stage, from 0."""


def _starting_wrong(pipeline: Pipeline) -> Iterator[int]:
    if pipeline.spans and pipeline.spans[0][0] != 0:
        yield 0


def _reversed(pipeline: Pipeline) -> Iterator[int]:
    return (i for i, (start, end) in enumerate(pipeline.spans or ()) if start >= end)


def _not_following(pipeline: Pipeline) -> Iterator[int]:
    spans = pipeline.spans or ()
    return (i for i in range(1, len(spans)) if spans[i][0] != spans[i - 1][1])


def _out_of_range(pipeline: Pipeline) -> Iterator[int]:
    count = pipeline.num_stages or MAX_STAGES
    return (i for i, override in enumerate(pipeline.overrides) if override.stage >= count)


def _repeated(pipeline: Pipeline) -> Iterator[int]:
    stages = [override.stage for override in pipeline.overrides]
    return (i for i, stage in enumerate(stages) if stage in stages[:i])


class Pipeline(PodSettings):
    """How the target is split, and the pods of its stages."""

    stages: Annotated[int, Field(ge=1, le=MAX_STAGES)] | None = None
    """Number of stages; the layers are divided so that the slowest stage is as fast as possible."""
    layers: Annotated[tuple[LayerRange, ...], Field(min_length=1, max_length=MAX_STAGES)] | None = None
    """The division by hand: a range of layers per stage, first and last included, such as ["0-5", "6-11"]."""
    overrides: Annotated[
        tuple[StageOverride, ...], Field(max_length=MAX_STAGES, json_schema_extra=list_map("stage"))
    ] = ()
    """What is different for single stages: bigger nodes, other devices."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            field="stages",
            problem="stages and layers exclude each other, and one is needed",
            remedy="Give stages to have the layers divided for you, or layers to divide them by hand",
            cel="has(self.stages) != has(self.layers)",
            violations=unless(lambda pipeline: (pipeline.stages is None) != (pipeline.layers is None)),
        ),
        Rule(
            field="layers",
            problem="the first range must begin with layer 0",
            remedy="Begin with a range such as 0-5",
            cel="!has(self.layers) || self.layers[0].startsWith('0-')",
            violations=_starting_wrong,
        ),
        Rule(
            field="layers",
            problem="a range must not end before it begins",
            remedy="Write the first layer, then the last, such as 6-11",
            cel="!has(self.layers) || self.layers.all(r, int(r.split('-')[0]) <= int(r.split('-')[1]))",
            violations=_reversed,
        ),
        Rule(
            field="layers",
            problem="must begin right after the range before it",
            remedy="Let 0-5 be followed by 6-..., without gap or overlap",
            # CEL's macros have no index. Starts in order and all different, each but the first right after an end,
            # say the same of ranges that do not run backwards.
            cel=(
                "!has(self.layers) || self.layers.map(r, int(r.split('-')[0])).isSorted() && "
                "self.layers.all(r, self.layers.exists_one(q, q.split('-')[0] == r.split('-')[0])) && "
                "self.layers.all(r, r == self.layers[0] || "
                "self.layers.exists(q, int(q.split('-')[1]) + 1 == int(r.split('-')[0])))"
            ),
            violations=_not_following,
        ),
        Rule(
            field="overrides",
            problem="names a stage that does not exist",
            remedy="Stages are counted from 0",
            cel=(
                "!has(self.overrides) || self.overrides.all(o, o.stage < "
                f"(has(self.stages) ? self.stages : has(self.layers) ? size(self.layers) : {MAX_STAGES}))"
            ),
            violations=_out_of_range,
        ),
        Rule(
            field="overrides",
            problem="the stage has an override already",
            remedy="Join them into one entry",
            cel=("!has(self.overrides) || self.overrides.all(o, self.overrides.exists_one(p, p.stage == o.stage))"),
            violations=_repeated,
        ),
    )

    @property
    def num_stages(self) -> int:
        return self.stages if self.stages is not None else len(self.layers or ())

    @property
    def spans(self) -> tuple[Span, ...] | None:
        """The ranges written by hand; None when only their number is given."""
        if self.layers is None:
            return None
        pairs = (written.split("-") for written in self.layers)
        return tuple((int(first), int(last) + 1) for first, last in pairs)

    def pod(self, stage: int) -> PodSettings:
        """Settings of one stage's pod: the pipeline's, overridden by the stage's own."""
        for override in self.overrides:
            if override.stage == stage:
                return self.overridden_by(override)
        return self
