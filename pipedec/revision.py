"""The revision of a pipeline: what must be equal in all its processes before one byte passes between them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from pipedec.spec import DeploymentSpec, Span


def revision(spec: DeploymentSpec, split: Sequence[Span], protocol: int, weights: str = "") -> str:
    """Twelve hex digits over the target, its dtype, its weights, the split and the wire protocol's number.

    `weights` is `pipedec.models.identity` of the folder, so that a branch which moved on between two starts is noticed.
    The draft is not in it: any draft gives the same output, so it may change without the stages reloading.
    """
    together = {
        "model": spec.model.uri,
        "dtype": spec.model.dtype,
        "weights": weights,
        "split": [list(span) for span in split],
        "protocol": protocol,
    }
    return hashlib.sha256(json.dumps(together, sort_keys=True).encode()).hexdigest()[:12]
