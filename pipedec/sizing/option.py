"""One way to build a pipeline: so many stages of one GPU, what they hold, and how fast they would decode."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pipedec.errors import PipeDecError
from pipedec.sizing.gpus import GIB, Gpu
from pipedec.sizing.memory import TREE_ROWS, Need, draft_need, stage_needs
from pipedec.sizing.model import DTYPE_BYTES, ModelSize
from pipedec.sizing.speed import POLICIES, speed_up, step_seconds
from pipedec.spec import Dtype, Policy
from pipedec.words import counted

MAX_STAGES = 64
COMFORT = 0.85  # of what is usable: room to raise context or sequences later, and for what the estimate misses


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked for. `link_seconds` is a message's way from stage to stage."""

    model: ModelSize
    draft: ModelSize | None
    gpu: Gpu
    dtype: Dtype
    context: int
    sequences: int
    agreement: float = 0.76
    link_seconds: float = 0.0005

    @property
    def width(self) -> int:
        """Bytes of one number."""
        return DTYPE_BYTES[self.dtype]


@dataclass(frozen=True, slots=True)
class Option:
    """A number of stages. `step_seconds` and `draft_seconds` are of 64 rows; `tokens_per_second` is of one request by
    policy, None where nothing was measured for a draft so slow, or there is no draft. All estimates."""

    stages: int
    needs: tuple[Need, ...]
    draft_need: Need | None
    step_seconds: float
    draft_seconds: float | None
    tokens_per_second: Mapping[Policy, float | None]

    @property
    def fullest(self) -> int:
        """Index of the stage that needs most memory."""
        return max(range(self.stages), key=lambda stage: self.needs[stage].total)


def option(wish: Wish, stages: int) -> Option:
    """The estimate for this number of stages. Raises `PipeDecError` if the model has fewer layers."""
    model = wish.model
    if not 1 <= stages <= min(model.num_layers, MAX_STAGES):
        raise PipeDecError(f"--stages {stages}: write 1 to {min(model.num_layers, MAX_STAGES)}")
    sizes = (stages, wish.sequences, wish.context, wish.width)
    one, many = (
        wish.link_seconds
        + max(step_seconds(model, span, rows, wish.gpu, wish.context, wish.width) for span in model.split(stages))
        for rows in (1, TREE_ROWS)
    )
    rates: dict[Policy, float | None] = dict.fromkeys(POLICIES)
    rates["none"] = 1 / (stages * one)
    drafting = need = None
    if wish.draft is not None:
        need = draft_need(wish.draft, *sizes)
        span = (0, wish.draft.num_layers)
        drafting = step_seconds(wish.draft, span, TREE_ROWS, wish.gpu, wish.context, wish.width)
        for policy in POLICIES:
            gain = speed_up(policy, stages, wish.agreement, drafting / many)
            if policy != "none" and gain is not None:
                rates[policy] = gain / (stages * many)
    return Option(stages, tuple(stage_needs(model, *sizes)), need, many, drafting, rates)


def least_stages(wish: Wish, share: float = 1.0) -> int:
    """The fewest stages with which each fits into `share` of the GPU's usable memory. Raises `PipeDecError` if none
    do, or the draft does not fit."""
    usable = share * wish.gpu.usable_bytes
    most = min(wish.model.num_layers, MAX_STAGES)

    def fullest(stages: int) -> float:
        return max(need.total for need in stage_needs(wish.model, stages, *sizes))

    sizes = (wish.sequences, wish.context, wish.width)
    if (needed := fullest(most)) > usable:
        raise PipeDecError(
            f"even one of {counted(most, 'stage')} needs {needed / GIB:.1f} GiB, and {wish.gpu.name} has "
            f"{usable / GIB:.1f} GiB to use; lower --context or --sequences, or choose a larger GPU"
        )
    kv = wish.sequences * wish.context * wish.model.kv_elements * wish.model.num_layers
    all_together = wish.model.held_bytes((0, wish.model.num_layers), wish.width) + kv * wish.width
    stages = next(n for n in range(max(1, int(all_together / usable)), most + 1) if fullest(n) <= usable)
    if wish.draft is not None and (need := draft_need(wish.draft, stages, *sizes).total) > wish.gpu.usable_bytes:
        raise PipeDecError(
            f"the draft needs {need / GIB:.1f} GiB, and {wish.gpu.name} has {wish.gpu.usable_bytes / GIB:.1f} GiB to "
            "use; choose a smaller draft, or lower --context or --sequences"
        )
    return stages


def recommended_stages(wish: Wish) -> int:
    """The fewest with memory to spare. More stages decode one request little faster, and cost a GPU each."""
    try:
        return least_stages(wish, COMFORT)
    except PipeDecError:
        return least_stages(wish)
