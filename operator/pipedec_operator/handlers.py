"""kopf: whatever happens to a resource or to one of its children wakes one pass over that resource.

Only `on.event` is used: timers, daemons and create/update/delete handlers make kopf add finalizers, and then a delete
hangs while the operator is down. Events are lost when a watch breaks, so every resource is also woken now and then.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Any

import kopf

from pipedec.health import Health
from pipedec_operator import names
from pipedec_operator.cluster import ClusterError
from pipedec_operator.metrics import OperatorMetrics
from pipedec_operator.names import Kind
from pipedec_operator.reconcile import Reconciler
from pipedec_operator.reports import Reports
from pipedec_operator.workqueue import WorkQueue

Key = tuple[str, str]  # namespace and name of a resource

_log = logging.getLogger(__name__)


class Keeper:
    """Keeps resources as they are asked for: a queue of them, and the reconciler in threads behind it. `reports` are
    those that the reconciler reads."""

    def __init__(
        self,
        reconciler: Reconciler,
        metrics: OperatorMetrics,
        resync_seconds: float,
        reports: Reports[Key] | None = None,
    ) -> None:
        self._reconciler, self._metrics, self._resync = reconciler, metrics, resync_seconds
        self._reports = reports or Reports()
        self._known: set[Key] = set()
        self.queue: WorkQueue[Key] = WorkQueue(self._pass)
        metrics.queue.set_function(lambda: len(self.queue))

    def wake(self, key: Key) -> None:
        self._known.add(key)
        self.queue.add(key)

    async def run(self, workers: int, health: Health) -> None:
        """Works until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.queue.run(workers))
            group.create_task(self._reports.run(self.queue.add))
            group.create_task(self._resync_for_ever())
            group.create_task(_beat(health))

    async def _resync_for_ever(self) -> None:
        """Spread over the interval, so that many resources are no burst; all at once when the cluster has got a kind of
        object that they could have."""
        while True:
            keys = sorted(self._known)
            for key in keys:
                await asyncio.sleep(self._resync / len(keys))
                self.queue.add(key)
            if not keys:
                await asyncio.sleep(self._resync)
            try:
                again = await asyncio.to_thread(self._reconciler.look_again)
            except ClusterError as error:
                _log.warning("looking for optional kinds: %s", error)
                continue
            for key in self._known if again else ():
                self.queue.add(key)

    async def _pass(self, key: Key) -> bool:
        namespace, name = key
        with self._metrics.reconciling(namespace) as going:
            outcome = await asyncio.to_thread(self._reconciler.reconcile, namespace, name)
            going.again = outcome.again
        self._reports.keep(key, outcome.pods)
        if outcome.resource is None:
            self._known.discard(key)
            self._metrics.forget(namespace, name)
        else:
            self._metrics.observe(outcome.resource)
        return outcome.again


async def _beat(health: Health) -> None:
    while True:
        health.beat()
        await asyncio.sleep(1)


def register(registry: kopf.OperatorRegistry, keeper: Keeper, kinds: Iterable[Kind]) -> None:
    """Wakes the keeper for events of resources, and of children of these kinds."""

    async def of_resource(namespace: str, name: str, **_: Any) -> None:
        keeper.wake((namespace, name))

    async def of_child(namespace: str, meta: kopf.Meta, **_: Any) -> None:
        if name := meta.get("labels", {}).get(names.DEPLOYMENT):
            keeper.wake((namespace, name))

    kopf.on.login(registry=registry, errors=kopf.ErrorsMode.PERMANENT)(kopf.login_via_client)
    kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)(of_resource)
    for kind in kinds:
        kopf.on.event(kind.api_version, kind.plural, registry=registry)(of_child)


def settings(kinds: Iterable[Kind]) -> kopf.OperatorSettings:
    """kopf's settings: watches that notice when they are dead, and carry nothing that is not ours."""
    chosen = kopf.OperatorSettings()
    chosen.scanning.disabled = True  # it would need to list all CRDs and namespaces; the CRD is there at the start
    chosen.posting.enabled = False  # events are told by the reconciler, on transitions
    chosen.networking.connect_timeout, chosen.networking.request_timeout = 10, 30
    chosen.watching.server_timeout, chosen.watching.client_timeout = 300, 330
    for kind in kinds:
        chosen.watching.label_selectors[kind.api_version, kind.plural] = f"{names.MANAGED_BY}={names.MANAGER}"
    return chosen
