"""Which of the namespaces that it is to keep the operator may keep.

kopf gives up all of its namespaces when it may not watch one: when that is gone, say, and its Role with it. So it is
given those alone that can be listed, and the others are looked at again now and then.
"""

from __future__ import annotations

from collections.abc import Iterable

from pipedec_operator import names
from pipedec_operator.cluster import Cluster, ClusterError
from pipedec_operator.names import Kind


class Scope:
    """The namespaces that are to be kept, none: all; and those of them that cannot be, with the reason.

    Making one raises `ClusterError` if the API server cannot say.
    """

    def __init__(self, cluster: Cluster, kinds: Iterable[Kind], wanted: Iterable[str]) -> None:
        self._cluster, self._kinds, self.wanted = cluster, tuple(kinds), tuple(wanted)
        self.refused = self._look()

    @property
    def kept(self) -> list[str]:
        return [namespace for namespace in self.wanted if namespace not in self.refused]

    def changed(self) -> bool:
        """Whether others can be kept now. Raises `ClusterError`."""
        return self._look().keys() != self.refused.keys()

    def _look(self) -> dict[str, str]:
        return {namespace: why for namespace in self.wanted if (why := self._refusal(namespace))}

    def _refusal(self, namespace: str) -> str:
        for kind in self._kinds:
            try:
                self._cluster.list(kind, namespace, {names.MANAGED_BY: names.MANAGER})
            except ClusterError as error:
                if error.passing:
                    raise
                if error.code != 404:  # a kind that the cluster has lost is none that is missed
                    return error.message
        return ""
