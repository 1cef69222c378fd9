"""The Secret with a pipeline's CURVE keys: made once, never changed by a mere reconcile.

To rotate the keys, delete the Secret: all pods then restart with the new ones, because the keys' fingerprint is an
annotation of every pod.
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
    """The Secret as it is; `fresh`, with new keys, if there is none, or if one of its entries is missing."""
    name, namespace = fresh["metadata"]["name"], fresh["metadata"]["namespace"]
    live = cluster.get(names.SECRET, namespace, name)
    if live is None:
        return cluster.create(names.SECRET, fresh)
    ours = live["metadata"].get("labels", {}).get(names.DEPLOYMENT) == fresh["metadata"]["labels"][names.DEPLOYMENT]
    if owner(live) not in (owner(fresh), *([None] if ours else [])) or terminating(live):
        raise NotOursError(f"{describe(fresh)} belongs to another, and is waited for until it is gone")
    if any(entry not in live.get("data", {}) for entry in ENTRIES):
        cluster.delete(names.SECRET, live)
        return cluster.create(names.SECRET, fresh)
    metadata = {key: value for key, value in fresh.items() if key != "stringData"}
    if not satisfied(metadata, live):
        return cluster.apply(names.SECRET, metadata)
    return live


def fingerprint(secret: Object) -> str:
    """Changes when the keys do; tells nothing about them."""
    return digest([secret["data"][entry] for entry in ENTRIES if entry.endswith(".public")])
