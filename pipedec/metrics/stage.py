"""What a stage does: steps, rows, time, and what it had to drop.

time per step, p99       histogram_quantile(0.99, sum by (stage, le) (rate(pipedec_stage_step_seconds_bucket[5m])))
share of time computing  rate(pipedec_stage_step_seconds_sum[1m])
rows per step            rate(pipedec_stage_rows_total[1m]) / (rate(pipedec_stage_step_seconds_count[1m]) > 0)
anything hostile         increase(pipedec_stage_dropped_total[5m]) > 0
"""

from __future__ import annotations

from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pipedec.metrics import NAMESPACE

DropReason = Literal["malformed", "impossible", "stale"]
DROP_REASONS: tuple[DropReason, ...] = ("malformed", "impossible", "stale")
STEP_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class StageMetrics:
    """Metrics of one stage."""

    def __init__(self, registry: CollectorRegistry, stage: int) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, ["stage"], namespace=NAMESPACE, registry=registry).labels(stage)

        def counter(name: str, text: str) -> Counter:
            return Counter(name, text, ["stage"], namespace=NAMESPACE, registry=registry).labels(stage)

        self.formed = gauge("stage_formed", "1 while this stage is in an epoch.")
        self.formations = counter("stage_formations_total", "Epochs joined.")
        self.rows = counter("stage_rows_total", "Rows computed.")
        self.unauthenticated = gauge(
            "stage_unauthenticated_connections", "Connections to the data port, so far, without the pipeline's key."
        )
        self.step_seconds = Histogram(
            "stage_step_seconds",
            "Time to compute one step.",
            ["stage"],
            namespace=NAMESPACE,
            registry=registry,
            buckets=STEP_SECONDS,
        ).labels(stage)
        dropped = Counter(
            "stage_dropped_total",
            "Messages dropped; malformed: not decodable, impossible: contradicts the state, stale: another epoch.",
            ["stage", "reason"],
            namespace=NAMESPACE,
            registry=registry,
        )
        self.dropped = {reason: dropped.labels(stage, reason) for reason in DROP_REASONS}
