"""How long a step takes, by a roofline, and what a policy makes of it, by what was measured."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, get_args

from pipedec.errors import PipeDecError
from pipedec.sizing.gpus import Gpu
from pipedec.sizing.model import ModelSize
from pipedec.spec import Policy, Span

BANDWIDTH_SHARE, FLOPS_SHARE = 0.8, 0.5  # of what the maker says
LAUNCH_SECONDS = 150e-6  # of a layer: some 15 kernels of 10 microseconds
USUAL_AGREEMENT = 0.76
POLICIES: tuple[Policy, ...] = get_args(Policy)


def step_seconds(model: ModelSize, span: Span, rows: int, gpu: Gpu, context: int, width: int) -> float:
    """T(rows) of a stage with these layers while one request of half the context is decoded, without the link."""
    layers = span[1] - span[0]
    read = model.read_bytes(span, width) + context / 2 * model.kv_elements * layers * width
    flops = 2 * rows * (model.read(span) + context * model.hidden_size * layers)
    return max(
        read / (BANDWIDTH_SHARE * gpu.bandwidth * 1e9),
        flops / (FLOPS_SHARE * gpu.tflops * 1e12),
        layers * LAUNCH_SECONDS,
    )


@cache
def measured() -> Mapping[str, Any]:
    """What `python -m benchmarks.sizing` wrote: speed-ups over plain pipeline parallelism."""
    table: Mapping[str, Any] = json.loads(files("pipedec").joinpath("data/speedup.json").read_text())
    return table


def _fastest_draft() -> Mapping[str, Any]:
    """What was measured with the draft that takes the least time, at every agreement."""
    table = measured()["draft_time"]
    fastest: Mapping[str, Any] = table[min(table, key=float)]
    return fastest


def check_agreement(agreement: float) -> None:
    """Raises `PipeDecError` for an agreement outside what was measured."""
    agreements = sorted(map(float, next(iter(_fastest_draft().values()))))
    if not agreements[0] <= agreement <= agreements[-1]:
        raise PipeDecError(f"--agreement {agreement}: was measured from {agreements[0]} to {agreements[-1]}")


def speed_up(policy: Policy, stages: int, agreement: float, draft_time: float) -> float | None:
    """A policy's speed-up over plain pipeline parallelism; None where the draft is slower than was measured.

    `draft_time` is that of one run of the draft as a share of a stage's. Below the least that was measured, and with
    more stages, the nearest measured value stands: a lower bound. What a slower draft costs was measured at
    `USUAL_AGREEMENT`, and is taken to be the same share of what is gained at others. Raises `PipeDecError` for an
    agreement outside what was measured.
    """
    table, fast = measured()["draft_time"], _fastest_draft()
    check_agreement(agreement)
    if policy == "none":
        return 1.0
    if draft_time > max(map(float, table)):
        return None
    slowed = _interpolated(table, (draft_time, stages, USUAL_AGREEMENT), policy)
    unslowed = _interpolated(fast, (stages, USUAL_AGREEMENT), policy)
    kept = (slowed - 1) / (unslowed - 1) if unslowed > 1 else 1.0  # of nothing gained there is nothing to lose
    return 1 + (_interpolated(fast, (stages, agreement), policy) - 1) * kept


def _interpolated(table: Mapping[str, Any], point: Sequence[float], policy: Policy) -> float:
    """Linear between the measured points of every axis, constant beyond them."""
    if not point:
        return float(table[policy])
    axis = sorted((float(key), rest) for key, rest in table.items())
    at = bisect_left([key for key, _ in axis], point[0])
    above = min(at, len(axis) - 1)
    below = max(at - 1, 0) if axis[above][0] > point[0] else above
    (low, under), (high, over) = axis[below], axis[above]
    share = (point[0] - low) / (high - low) if high > low else 0.0
    return (1 - share) * _interpolated(under, point[1:], policy) + share * _interpolated(over, point[1:], policy)
