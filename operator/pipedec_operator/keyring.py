"""The Secret with a pipeline's CURVE keys: made once, never changed by a mere reconcile.

New keys are made when the Secret is gone, or when the resource's annotation pipedec.dev/rotate-keys has another value
than the one they were made for. All pods are then replaced, because the keys' fingerprint is an annotation of each.
Secrets are not watched: a right to watch one kind of Secret is a right to read them all.
"""

from __future__ import annotations

from pipedec.wire.keys import new_keys
from pipedec_operator import names
from pipedec_operator.cluster import Cluster
from pipedec_operator.names import Object
from pipedec_operator.plan import describe, owner, satisfied, terminating
from pipedec_operator.projection import digest

__all__ = ["NotOursError", "ensure", "fingerprint", "new_keys"]

ENTRIES = ("server.public", "server.secret", "client.public", "client.secret")


class NotOursError(Exception):
    """There is a Secret of that name which is not this resource's, or is about to go."""


def ensure(cluster: Cluster, fresh: Object) -> Object:
    """The Secret as it is; `fresh`, with new keys, if there is none, if one of its entries is missing, or if others are
    asked for."""
    name, namespace = fresh["metadata"]["name"], fresh["metadata"]["namespace"]
    live = cluster.get(names.SECRET, namespace, name)
    if live is None:
        return cluster.create(names.SECRET, fresh)
    ours = live["metadata"].get("labels", {}).get(names.DEPLOYMENT) == fresh["metadata"]["labels"][names.DEPLOYMENT]
    if owner(live) not in (owner(fresh), *([None] if ours else [])) or terminating(live):
        raise NotOursError(f"{describe(fresh)} belongs to another, and is waited for until it is gone")
    if any(entry not in live.get("data", {}) for entry in ENTRIES) or _asked(fresh) not in (None, _asked(live)):
        cluster.delete(names.SECRET, live)
        return cluster.create(names.SECRET, fresh)
    metadata = {key: value for key, value in fresh.items() if key != "stringData"}
    if not satisfied(metadata, live):
        return cluster.apply(names.SECRET, metadata)
    return live


def _asked(secret: Object) -> str | None:
    """The value of the annotation that a Secret's keys were made for."""
    value: str | None = secret["metadata"].get("annotations", {}).get(names.ROTATE_KEYS)
    return value


def fingerprint(secret: Object) -> str:
    """Changes when the keys do; tells nothing about them."""
    return digest([secret["data"][entry] for entry in ENTRIES if entry.endswith(".public")])
