"""What the processes hold: KV slots, memory, processor time."""

from __future__ import annotations

from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models import units

from observability.layout import Line, Section
from observability.panels import Query, time_series
from observability.pipeline.scope import CORES, HERE, REQUESTS
from observability.promql import share


def section() -> Section:
    return Section("Memory and processors", [Line(8, _slots()), Line(8, _processes())])


def _slots() -> list[models.Panel]:
    return [
        time_series(
            "KV slots",
            units.PercentUnit,
            "Share of the KV slots that requests hold, for tokens certain or predicted, in the fullest replica. All "
            "stages have the same ones.",
            Query(HERE.sum(HERE.of("pipedec_kv_cache_usage_perc"), operator="max"), "used"),
            most=1.0,
        ),
        time_series(
            "Prefix cache",
            units.PercentUnit,
            "Share of prompt tokens that were computed for an earlier request already.",
            Query(
                share(HERE.rate("pipedec_prefix_cache_hits_total"), HERE.rate("pipedec_prefix_cache_queries_total")),
                "reused",
            ),
            most=1.0,
        ),
        time_series(
            "Preemptions",
            REQUESTS,
            "Requests that went back to the queue because an older one needed their KV slots.",
            Query(HERE.increase("pipedec_num_preemptions_total"), "preempted"),
        ),
    ]


def _processes() -> list[models.Panel]:
    processor = f"rate({HERE.of('process_cpu_seconds_total')}[{HERE.window}])"
    return [
        time_series(
            "Memory",
            units.BytesIEC,
            "Resident memory of each pod's process; a device's own memory is not in it.",
            Query(HERE.sum(HERE.of("process_resident_memory_bytes"), "pod", operator="max"), "{{pod}}"),
        ),
        time_series(
            "Processor",
            CORES,
            "Processor time of each pod's process.",
            Query(HERE.sum(processor, "pod", operator="max"), "{{pod}}"),
        ),
    ]
