"""What is wrong, and what to do: checks of a manifest, a cluster and a running pipeline.

Facts are gathered in `gather` (files, HTTP, the Kubernetes API) and judged here by pure functions, facts -> findings.
"""

from pipedec.doctor.cluster import ClusterFacts, judge_cluster
from pipedec.doctor.endpoint import EndpointFacts, judge_endpoint
from pipedec.doctor.findings import Finding, exit_status
from pipedec.doctor.manifest import ManifestFacts, ModelFacts, judge_manifest

__all__ = [
    "ClusterFacts",
    "EndpointFacts",
    "Finding",
    "ManifestFacts",
    "ModelFacts",
    "exit_status",
    "judge_cluster",
    "judge_endpoint",
    "judge_manifest",
]
