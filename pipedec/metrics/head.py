"""What the head of a pipeline does: batches, predictions, hits, and the epoch it is in.

hit rate                     rate(pipedec_head_hits_total[1m])
                             / (rate(pipedec_head_hits_total[1m]) + rate(pipedec_head_misses_total[1m]) > 0)
predictions per batch        rate(pipedec_head_predicted_rows_total[1m]) / (rate(pipedec_head_batches_total[1m]) > 0)
share of predictions wasted  1 - rate(pipedec_head_hits_total[1m]) / (rate(pipedec_head_predicted_rows_total[1m]) > 0)
without speculation          pipedec_head_degraded == 1
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from pipedec.metrics import NAMESPACE


@dataclass(slots=True)
class HeadCounts:
    """Totals since the process began; the head adds to them, whoever scrapes reads them."""

    hits: int = 0
    misses: int = 0
    batches: int = 0
    prefill_rows: int = 0
    certain_rows: int = 0
    predicted_rows: int = 0
    draft_rows: int = 0
    epochs_lost: int = 0
    stale_verdicts: int = 0
    refused_registrations: int = 0


@dataclass(frozen=True, slots=True)
class HeadState:
    """How the head stands at one moment."""

    running: int
    waiting: int
    in_flight: int
    kv_slots: int
    kv_slots_used: int
    epoch_live: bool
    degraded: bool
    malformed: int
    unauthenticated: int


_COUNTERS = {
    "hits": "Decided tokens whose node was in the pipeline already.",
    "misses": "Decided tokens that had to be sent after they were decided.",
    "batches": "Batches sent into the pipeline.",
    "prefill_rows": "Prompt tokens sent into the pipeline.",
    "certain_rows": "Certain tokens sent into the pipeline as tree rows.",
    "predicted_rows": "Predictions sent into the pipeline.",
    "draft_rows": "Nodes that the draft model evaluated.",
    "epochs_lost": "Formations that ended, for whatever reason.",
    "stale_verdicts": "Verdicts dropped: of another epoch, repeated, or after one that was lost.",
    "refused_registrations": "Registrations of stages that do not fit, or that another process made already.",
}


class HeadMetrics(Collector):
    """Exports a head's counts and state as they are when Prometheus asks; the head's own loop pays nothing."""

    def __init__(
        self, registry: CollectorRegistry, model_name: str, counts: HeadCounts, state: Callable[[], HeadState]
    ) -> None:
        self._model_name, self._counts, self._state = model_name, counts, state
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        for name, text in _COUNTERS.items():
            counter = CounterMetricFamily(f"{NAMESPACE}_head_{name}", text, labels=["model_name"])
            counter.add_metric([self._model_name], getattr(self._counts, name))
            yield counter
        state = self._state()
        for name, text, value in (
            ("num_requests_running", "Sequences that are being decoded.", state.running),
            ("num_requests_waiting", "Sequences that wait for their turn.", state.waiting),
            ("kv_cache_usage_perc", "Share of the KV slots in use, 0 to 1.", state.kv_slots_used / state.kv_slots),
            ("head_batches_in_flight", "Batches in the pipeline.", state.in_flight),
            ("head_kv_slots", "KV slots of the formation.", state.kv_slots),
            ("head_kv_slots_used", "KV slots that hold a token, certain or predicted.", state.kv_slots_used),
            ("head_epoch_live", "1 while a formation is live.", state.epoch_live),
            ("head_degraded", "1 while decoding goes on without the draft model asked for.", state.degraded),
            ("head_malformed_messages", "Messages dropped so far because they were malformed.", state.malformed),
            ("head_unauthenticated_connections", "Connections so far without the key.", state.unauthenticated),
        ):
            gauge = GaugeMetricFamily(f"{NAMESPACE}_{name}", text, labels=["model_name"])
            gauge.add_metric([self._model_name], float(value))
            yield gauge
