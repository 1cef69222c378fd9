"""What a stage does, for Prometheus: its time, its rows, what of both became tokens, its links, what it dropped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector

from pipedec.metrics.declared import stage as declared
from pipedec.metrics.declared.stage import DropReason, State
from pipedec.metrics.distribution import Distribution
from pipedec.metrics.family import Family, Samples


class StageMetrics(Collector):
    """Metrics of one stage; its loop adds to plain numbers, whoever scrapes reads them."""

    def __init__(self, registry: CollectorRegistry, stage: int) -> None:
        self._stage = str(stage)
        self._info: Samples = ()
        self.formed, self.epoch, self.kv_slots, self.formations = False, 0, 0, 0
        self.steps = self.rows = self.useful_rows = self.cancelled_rows = 0
        self.useful_seconds = 0.0
        self.received_bytes = self.sent_bytes = 0
        self.unauthenticated = 0
        self.seconds: dict[State, float] = dict.fromkeys(declared.STATES, 0.0)
        self.dropped: dict[DropReason, int] = dict.fromkeys(declared.DROP_REASONS, 0)
        self._step_seconds = [Distribution(declared.STEP_SECONDS) for _ in declared.ROWS]
        registry.register(self)

    def holds(self, layers: tuple[int, int], dtype: str, device: str) -> None:
        """What this stage holds: `layers` is a half-open span."""
        self._info = [((f"{layers[0]}-{layers[1] - 1}", dtype, device), 1.0)]

    def step(self, rows: int, seconds: float) -> None:
        """A step is over, of so many rows computed."""
        self.steps += 1
        self.rows += rows
        bucket = 1 + (rows - 1).bit_length() if rows else 0
        self._step_seconds[min(bucket, len(self._step_seconds) - 1)].add(seconds)

    def collect(self) -> Iterator[Metric]:
        samples = self._samples()
        return (family.metric((self._stage,), samples[family]) for family in declared.families)

    def _samples(self) -> Mapping[Family, Samples]:
        values = {
            declared.FORMED: self.formed,
            declared.EPOCH: self.epoch,
            declared.FORMATIONS: self.formations,
            declared.USEFUL_SECONDS: self.useful_seconds,
            declared.STEPS: self.steps,
            declared.COMPUTED_ROWS: self.rows,
            declared.USEFUL_ROWS: self.useful_rows,
            declared.CANCELLED_ROWS: self.cancelled_rows,
            declared.RECEIVED_BYTES: self.received_bytes,
            declared.SENT_BYTES: self.sent_bytes,
            declared.KV_SLOTS: self.kv_slots,
            declared.UNAUTHENTICATED: self.unauthenticated,
        }
        samples: dict[Family, Samples] = {family: [((), value)] for family, value in values.items()}
        return samples | {
            declared.INFO: self._info,
            declared.SECONDS: [((state,), seconds) for state, seconds in self.seconds.items()],
            declared.DROPPED: [((reason,), count) for reason, count in self.dropped.items()],
            declared.STEP_TIME: [
                ((rows,), times) for rows, times in zip(declared.ROWS, self._step_seconds, strict=True)
            ],
        }
