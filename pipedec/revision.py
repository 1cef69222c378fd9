"""The revision of a pipeline: what must be equal in all its processes before one byte passes between them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from pipedec.spec import DeploymentSpec


def revision(spec: DeploymentSpec, split: Sequence[tuple[int, int]], protocol: int) -> str:
    """Twelve hex digits over the target, its dtype, the split (half-open spans) and the wire protocol's number.

    The draft is not in it: any draft gives the same output, so it may change without the stages reloading.
    """
    together = {
        "model": spec.model.uri,
        "dtype": spec.model.dtype,
        "split": [list(span) for span in split],
        "protocol": protocol,
    }
    return hashlib.sha256(json.dumps(together, sort_keys=True).encode()).hexdigest()[:12]
