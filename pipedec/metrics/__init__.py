"""Prometheus metrics: one class per concern, one module per class, every one built on an explicit registry.

A service makes one registry, hands it to the metric classes it needs, and exposes it. Names follow vLLM's suffixes
under the prefix `pipedec_`, so that queries written for vLLM need only another prefix. Labels are bounded: never
a request id, a client or a text.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.exposition import choose_encoder

NAMESPACE = "pipedec"


def service_registry() -> CollectorRegistry:
    """A registry that already tells of the process: memory, CPU, file descriptors, garbage collection."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def expose(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """The body and the content type of `/metrics`, in the exposition format that the `Accept` header prefers."""
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type
