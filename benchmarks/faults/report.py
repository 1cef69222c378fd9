"""What a run says of itself."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from benchmarks.faults.inject import Fault
from benchmarks.faults.load import Load

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident bytes of one process, when it was first seen at work and at the end."""

    name: str
    pid: int
    first: int
    last: int

    def told(self) -> dict[str, Any]:
        growth = (self.last - self.first) / MIB
        return {"process": self.name, "mib": round(self.last / MIB, 1), "growth_mib": round(growth, 1)}


def quantile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all do not exceed."""
    ranked = sorted(values)
    return ranked[min(len(ranked) - 1, int(share * len(ranked)))]


@dataclass(frozen=True, slots=True)
class Mark:
    """All processes of a pipeline at one moment: CPU seconds so far, and resident bytes."""

    at: float
    cpu: float
    resident: int


def periods(load: Load, marks: Sequence[Mark]) -> list[dict[str, float]]:
    """Throughput, latency and memory between each two marks. On a machine that others use too, compare the
    throughput per CPU second."""
    rows = []
    for begin, end in pairwise(marks):
        length = end.at - begin.at
        latencies = [seconds for at, seconds in load.latencies if begin.at <= at < end.at] or [0.0]
        pieces = sum(begin.at <= at < end.at for at in load.token_times)
        rows.append(
            {
                "streamed_pieces_per_s": round(pieces / length, 2),
                "streamed_pieces_per_cpu_s": round(pieces / (end.cpu - begin.cpu), 2),
                "latency_median_s": round(statistics.median(latencies), 3),
                "latency_p99_s": round(quantile(latencies, 0.99), 3),
                "mib": round(end.resident / MIB, 1),
            }
        )
    return rows


def report(load: Load, faults: Sequence[Fault], leaked_slots: int, memory: Sequence[Memory]) -> dict[str, Any]:
    """Everything that a run is judged by, and the faults one by one."""
    seconds = [fault.seconds for fault in faults]
    return {
        "faults": dict(Counter(fault.kind for fault in faults)),
        "requests": len(load.latencies) + len(load.failed),
        "failed": len(load.failed),
        "different": len(load.different),
        "leaked_slots": leaked_slots,
        "recovery_s": {"median": round(statistics.median(seconds), 2), "p99": round(quantile(seconds, 0.99), 2)}
        if seconds
        else None,
        "recovery_by_kind_s": {
            kind: round(statistics.median(fault.seconds for fault in faults if fault.kind == kind), 2)
            for kind in sorted({fault.kind for fault in faults})
        },
        "memory": [each.told() for each in memory],
        "first_failures": load.failed[:5],
        "first_differences": load.different[:5],
        "each_fault": [asdict(fault) for fault in faults],
    }
