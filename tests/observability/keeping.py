"""The operator at work on a cluster that is a dictionary: its real queue, passes and metrics, without an API server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import count

from pipedec.health import Health, HealthServer
from pipedec.metrics import service_registry
from pipedec_operator import names
from pipedec_operator.cluster import ClusterError
from pipedec_operator.handlers import Keeper
from pipedec_operator.manifests import Setting
from pipedec_operator.metrics import OperatorMetrics
from pipedec_operator.names import Kind, Object
from pipedec_operator.reconcile import Reconciler
from tests.control_plane.samples import pod_of, rolled_out


class Shelf:
    """A `Cluster` of which every Deployment is rolled out at once; its first answer is that it is overloaded."""

    def __init__(self, metrics: OperatorMetrics) -> None:
        self._metrics, self._versions, self._overloaded = metrics, count(1), True
        self._objects: dict[tuple[str, str, str], Object] = {}

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        self._answer("GET")
        return self._objects.get((kind.kind, namespace, name))

    def list(self, kind: Kind, namespace: str, selector: dict[str, str]) -> list[Object]:
        self._answer("GET")
        if kind == names.POD:
            return [pod_of(each) for each in self._objects.values() if each["kind"] == names.WORKLOAD.kind]
        return [each for (found, where, _), each in self._objects.items() if (found, where) == (kind.kind, namespace)]

    def apply(self, kind: Kind, child: Object) -> Object:
        self._answer("PATCH")
        return self.put(rolled_out(child) if kind == names.WORKLOAD else child)

    def patch(self, kind: Kind, child: Object, patch: Object) -> Object:
        raise NotImplementedError("nobody edits what is here")

    def create(self, kind: Kind, child: Object) -> Object:
        self._answer("POST")
        return self.put({**child, "data": child.get("stringData", {})})

    def delete(self, kind: Kind, child: Object) -> None:
        raise NotImplementedError("nothing that is here becomes superfluous")

    def replace_status(self, kind: Kind, resource: Object) -> Object:
        self._answer("PUT")
        return self.put(resource)

    def first_known(self, kinds: Iterable[Kind]) -> Kind | None:
        return None

    def put(self, thing: Object) -> Object:
        """Add or replace an object, with what an API server adds to it."""
        version = str(next(self._versions))
        metadata = {"uid": version, "generation": 1, **thing["metadata"], "resourceVersion": version}
        self._objects[thing["kind"], metadata["namespace"], metadata["name"]] = {**thing, "metadata": metadata}
        return {**thing, "metadata": metadata}

    def _answer(self, verb: str) -> None:
        code = 503 if self._overloaded else 200
        self._metrics.count_call(verb, code)
        if self._overloaded:
            self._overloaded = False
            raise ClusterError(code, "ServiceUnavailable", "try again")


@contextmanager
def keeping(manifest: Object) -> Iterator[str]:
    """Keeps a resource, and gives the address of the operator's metrics."""
    registry = service_registry("operator")
    metrics, health = OperatorMetrics(registry), Health()
    metrics.keep(["lab", "attic"], {"attic": "no Role"})
    shelf = Shelf(metrics)
    shelf.put(manifest)
    keeper = Keeper(Reconciler(shelf, Setting("stage:1", "draft:1", "9.9.9")), metrics, resync_seconds=1)
    stop = asyncio.Event()

    async def keep() -> None:
        work = asyncio.create_task(keeper.run(1, health))
        keeper.wake((manifest["metadata"]["namespace"], manifest["metadata"]["name"]))
        await stop.wait()
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(keep()))
    with HealthServer("127.0.0.1", 0, health, registry) as server:
        thread.start()
        try:
            yield f"127.0.0.1:{server.port}"
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join()
            loop.close()
