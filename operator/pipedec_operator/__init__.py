"""The operator: keeps what a cluster runs equal to what its `PipeDecDeployment`s ask for.

Pure: `manifests` (spec -> child objects), `plan` (desired and observed -> actions), `status` (observed -> status,
events). `cluster` alone talks to the API server; `reconcile` is one pass over one resource; `handlers` wakes it.
Needs neither torch nor ZeroMQ.
"""
