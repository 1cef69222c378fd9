"""What every service says of its process, beside the `process_` and `python_` metrics of prometheus-client."""

from __future__ import annotations

from typing import Literal

from pipedec.metrics.family import Catalogue

Service = Literal["stage", "draft", "operator"]
SERVICES: tuple[Service, ...] = ("stage", "draft", "operator")

families = Catalogue()

BUILD_INFO = families.gauge(
    "pipedec_build_info",
    "1",
    "1, labelled with the service and its version.",
    "count by (service, version) (pipedec_build_info)",
    service=SERVICES,
    version="one per process",
)
