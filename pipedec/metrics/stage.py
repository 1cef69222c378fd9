"""What a stage does: its time, its rows, what of both became tokens, its links, and what it had to drop."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from pipedec.metrics.declared import stage as declared
from pipedec.metrics.family import Family


class StageMetrics:
    """Metrics of one stage."""

    def __init__(self, registry: CollectorRegistry, stage: int) -> None:
        def counter(family: Family) -> Counter:
            return family.counter(registry).labels(stage)

        self._stage, self._info = stage, declared.INFO.gauge(registry)
        self.formed = declared.FORMED.gauge(registry).labels(stage)
        self.epoch = declared.EPOCH.gauge(registry).labels(stage)
        self.kv_slots = declared.KV_SLOTS.gauge(registry).labels(stage)
        self.formations, self.steps = counter(declared.FORMATIONS), counter(declared.STEPS)
        self.rows, self.useful_rows, self.cancelled_rows = (
            counter(family) for family in (declared.COMPUTED_ROWS, declared.USEFUL_ROWS, declared.CANCELLED_ROWS)
        )
        self.useful_seconds = counter(declared.USEFUL_SECONDS)
        self.received_bytes, self.sent_bytes = counter(declared.RECEIVED_BYTES), counter(declared.SENT_BYTES)
        self.unauthenticated = counter(declared.UNAUTHENTICATED)
        seconds, dropped, step_time = (
            declared.SECONDS.counter(registry),
            declared.DROPPED.counter(registry),
            declared.STEP_TIME.histogram(registry),
        )
        self.seconds = {state: seconds.labels(stage, state) for state in declared.STATES}
        self.dropped = {reason: dropped.labels(stage, reason) for reason in declared.DROP_REASONS}
        self._step_seconds = [step_time.labels(stage, rows) for rows in declared.ROWS]

    def describe(self, layers: tuple[int, int], dtype: str, device: str) -> None:
        """What this stage holds: `layers` is a half-open span."""
        self._info.labels(self._stage, f"{layers[0]}-{layers[1] - 1}", dtype, device).set(1)

    def step(self, rows: int, seconds: float) -> None:
        """A step is over, of so many rows computed."""
        self.steps.inc()
        self.rows.inc(rows)
        bucket = 1 + (rows - 1).bit_length() if rows else 0
        self._step_seconds[min(bucket, len(declared.ROWS) - 1)].observe(seconds)
