"""How long one step of a span takes, by rows and context, and how long it has to: the time to read its bytes once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from benchmarks.random_spans import weight_bytes
from draft_service.draft.drafter import Drafter
from pipedec.model.execution import Execution
from pipedec.model.executor import SpanExecutor
from pipedec.model.span import Span
from pipedec.sampling_params import SamplingParams
from pipedec.wire.messages import NO_PARENT, Batch, Commit, Open, Row, Rows

Variant = Literal["eager", "static", "kernel", "fused", "invariant"]
VARIANTS: dict[Variant, Execution] = {
    "eager": Execution("sdpa"),
    "static": Execution("dense", (1,)),
    "kernel": Execution("triton", (1,)),
    "fused": Execution("triton", (1,), fused=True),
    "invariant": Execution("invariant"),
}
DEFAULT: dict[str, tuple[Variant, ...]] = {
    "cpu": ("eager", "static", "invariant"),
    "cuda": ("eager", "static", "kernel", "fused"),
}
CHILDREN = 16  # that a draft proposes for each row
_BRANCHES = 4  # children of a node in the tree whose rows are timed
_COPIED = {"cuda": 1 << 32, "cpu": 1 << 28}  # bytes


@dataclass(frozen=True, slots=True)
class StepTime:
    """Milliseconds of a step. `queued`: of steps that are asked for without waiting for each other, which is what the
    device takes; `waited`: of steps whose output is waited for on the CPU, as a stage does; `bound`: of reading
    weights and KV once at the speed of a copy."""

    variant: Variant
    context: int
    rows: int
    queued: float
    waited: float
    bound: float


def execution(variant: Variant, rows: Sequence[int], device: torch.device) -> Execution:
    """The variant with a program for each of these numbers of rows; recorded, where there are graphs."""
    chosen = VARIANTS[variant]
    if not chosen.buckets:
        return chosen
    return replace(chosen, buckets=tuple(sorted(rows)), graphs=device.type == "cuda")


def copy_bandwidth(device: torch.device) -> float:
    """Bytes per second, read and written together, of copying a large tensor."""
    source = torch.empty(_COPIED[device.type] // 2, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source)
    seconds = measure(lambda: target.copy_(source), 10, device)
    return 2 * source.numel() / seconds


def measure(step: Callable[[], object], repeats: int, device: torch.device, waiting: bool = False) -> float:
    """Seconds of a step: the median over `repeats` that are each waited for, or their mean as they are queued."""
    for _ in range(3):
        step()
    synchronise(device)
    if waiting:
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        return statistics.median(times)
    start = time.perf_counter()
    for _ in range(repeats):
        step()
    synchronise(device)
    return (time.perf_counter() - start) / repeats


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def tree_batch(context: int, rows: int) -> Batch:
    """One step's rows of a request of that context: a tree, level by level."""
    nodes: list[Row] = []
    for node in range(rows):
        parent = None if node == 0 else nodes[(node - 1) // _BRANCHES]
        ancestors = () if parent is None else (*parent.ancestors, parent.slot)
        above = NO_PARENT if parent is None else parent.node
        nodes.append(Row(1, node, above, 7 + node, context + len(ancestors), context + node, ancestors))
    return Batch(0, 1, (), Rows.of(nodes))


@torch.inference_mode()
def step_times(
    span: Span, variant: Variant, context: int, rows: Sequence[int], bandwidth: float, repeats: int
) -> list[StepTime]:
    """One request of `context` committed tokens with random K and V, and steps of each number of rows on it."""
    device = span.device
    executor = SpanExecutor(span, context + max(rows), execution(variant, rows, device))
    for part in (executor.pool.keys, executor.pool.values):
        part.normal_()
    committed = Commit(1, tuple(range(context)))
    start = Batch(0, 0, (Open(1, SamplingParams(), context), committed))
    idle = torch.empty(0, span.hidden_size, dtype=span.dtype)
    executor.execute(start, None if span.first else idle)
    drafter = Drafter(executor, CHILDREN) if span.last else None
    read = weight_bytes(span) + context * _slot_bytes(span)
    times = []
    for count in sorted(rows):
        batch = tree_batch(context, count)
        hidden = None if span.first else torch.randn(count, span.hidden_size, dtype=torch.float32).to(span.dtype)
        queued = measure(lambda: _queue(executor, drafter, batch, hidden), repeats, device)  # noqa: B023
        waited = measure(lambda: _wait(executor, drafter, batch, hidden), repeats, device, waiting=True)  # noqa: B023
        times.append(StepTime(variant, context, count, 1000 * queued, 1000 * waited, 1000 * read / bandwidth))
    return times


def _slot_bytes(span: Span) -> int:
    return 2 * len(span.layers) * int(np.prod(span.kv_shape)) * span.dtype.itemsize


def _queue(executor: SpanExecutor, drafter: Drafter | None, batch: Batch, hidden: torch.Tensor | None) -> None:
    output = executor.execute(batch, hidden)
    assert output is not None, "nothing stops it"
    if drafter is not None:
        drafter.rank(output)


def _wait(executor: SpanExecutor, drafter: Drafter | None, batch: Batch, hidden: torch.Tensor | None) -> None:
    if drafter is not None:
        drafter.propose(batch)
        return
    output = executor.execute(batch, hidden)
    assert output is not None, "nothing stops it"
    executor.staging.download(output)
