"""Prometheus metrics: one class per concern, one module per class, every one built on an explicit registry.

A service makes one registry, hands it to the metric classes it needs, and exposes it. What metrics there are is said in
`declared`, and from there in docs/metrics.md. Names follow vLLM's suffixes under the prefix `pipedec_`, so that queries
written for vLLM need only another prefix. Labels are bounded: never a request id, a client or a text.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    GCCollector,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from pipedec import __version__
from pipedec.metrics.declared.process import BUILD_INFO, Service


def service_registry(service: Service) -> CollectorRegistry:
    """A registry that already tells of the process: version, memory, CPU, file descriptors, garbage collection."""
    # No series beside each counter with the time at which it began: the process tells it once.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    BUILD_INFO.gauge(registry).labels(service, __version__).set(1)
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def expose(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """The body and the content type of `/metrics`, in the exposition format that the `Accept` header prefers."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
