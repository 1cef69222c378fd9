"""A real API server for tests: the cluster of KUBECONFIG, a namespace of one's own, and what is in it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from kubernetes import client, config

from pipedec.spec.crd import crd
from pipedec_operator import names
from pipedec_operator.cluster import ApiServer, Cluster, ClusterError, connect
from pipedec_operator.manifests import Setting
from pipedec_operator.names import Kind, Object
from pipedec_operator.reconcile import Reconciler


class Lab:
    """One namespace of a real cluster, with a resource in it."""

    def __init__(self) -> None:
        config.load_kube_config()
        self.api: ApiServer = connect()
        self.core = client.CoreV1Api()
        self.custom = client.CustomObjectsApi()
        self.namespace = f"lab-{uuid4().hex[:8]}"
        self.core.create_namespace({"metadata": {"name": self.namespace}})
        self._forbid_pods()
        self.setting = Setting(
            "example.invalid/stage:1",
            "example.invalid/draft:1",
            "9.9.9",
            disruption_budget=self.api.first_known(names.DISRUPTION_BUDGETS),
        )

    def _forbid_pods(self) -> None:
        """Where controllers act on what is made here, no pod is to come of it: a pass would wait for its end."""
        none = {"hard": {"pods": "0"}}
        self.core.create_namespaced_resource_quota(self.namespace, {"metadata": {"name": "none"}, "spec": none})
        status = {"status": none | {"used": {"pods": "0"}}}
        self.core.patch_namespaced_resource_quota_status("none", self.namespace, status)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """Every kind of child."""
        return (*self.setting.kinds, names.SECRET)

    def close(self) -> None:
        for child in self.list(names.WORKLOAD):
            self.api.delete(names.WORKLOAD, child)
        self.core.delete_namespace(self.namespace)

    def clear(self) -> None:
        """Removes the resource and its children, without waiting for a garbage collector."""
        if (resource := self.resource()) is not None:
            self.api.delete(names.RESOURCE, resource)
        for kind in self.kinds:
            for child in self.list(kind):
                self.api.delete(kind, child)

    def write(self, manifest: Object) -> Object:
        """Creates a resource, or replaces its spec, as `kubectl apply` would."""
        name = manifest["metadata"]["name"]
        if (live := self.resource(name)) is None:
            manifest = {**manifest, "metadata": {"name": name, "namespace": self.namespace}}
            return self.api.create(names.RESOURCE, manifest)
        path = (names.GROUP, names.VERSION, self.namespace, names.PLURAL, name)
        found: Object = self.custom.replace_namespaced_custom_object(*path, {**live, "spec": manifest["spec"]})
        return found

    def annotate(self, annotation: str, value: str | None) -> None:
        """As `kubectl annotate` would; None takes the annotation away."""
        patch = {"metadata": {"annotations": {annotation: value}}}
        self.api.patch(names.RESOURCE, {"metadata": {"namespace": self.namespace, "name": "lion"}}, patch)

    def resource(self, name: str = "lion") -> Object | None:
        return self.api.get(names.RESOURCE, self.namespace, name)

    def list(self, kind: Kind) -> list[Object]:
        return self.api.list(kind, self.namespace, {names.DEPLOYMENT: "lion"})

    def reconciler(self, cluster: Cluster | None = None) -> Reconciler:
        return Reconciler(cluster or self.api, self.setting)

    def settle(self, limit: int = 6) -> int:
        """Passes of a fresh operator until one leaves the children alone. Gives the number of those that did not.

        The status may still change by itself, where controllers and a kubelet act on the children.
        """
        for count in range(limit):
            counting = Counting(self.api)
            self.reconciler(counting).reconcile(self.namespace, "lion")
            if not counting.repairs:
                return count
        raise AssertionError(f"no end after {limit} passes: {counting.repairs}")

    def state(self) -> dict[str, Any]:
        """All that the operator makes, without what the server or chance decides."""
        children = [child for kind in self.kinds for child in self.list(kind)]
        return {f"{child['kind']}/{child['metadata']['name']}": self._essence(child) for child in children}

    def _essence(self, child: Object) -> Any:
        metadata = child["metadata"]
        kept = {"labels": metadata["labels"], "owners": [each["name"] for each in metadata["ownerReferences"]]}
        body = {key: value for key, value in child.items() if key not in ("metadata", "status", "secrets")}
        if child["kind"] == names.SECRET.kind:
            body["data"] = sorted(body["data"])
        if child["kind"] == names.SERVICE.kind:
            body["spec"] = {k: v for k, v in body["spec"].items() if k not in ("clusterIP", "clusterIPs")}
        text = json.dumps(kept | body, sort_keys=True).replace(self.namespace, "NAMESPACE")
        plain = json.loads(text)
        plain.get("spec", {}).get("template", {}).get("metadata", {}).pop("annotations", None)
        return plain


class Counting:
    """A `Cluster` that counts calls, and notes what they wrote."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster, self.calls, self.writes = cluster, 0, list[str]()

    def before(self, call: int) -> None:
        """Called before the call of this number, from 0."""

    @property
    def repairs(self) -> list[str]:
        """What was written to children."""
        return [write for write in self.writes if not write.startswith(("replace_status", "create Event"))]

    def _do(self, method: str, *args: Any) -> Any:
        self.before(self.calls)
        self.calls += 1
        if method not in ("get", "list", "first_known"):
            self.writes.append(f"{method} {args[0].kind} {args[1]['metadata']['name']}")
        return getattr(self._cluster, method)(*args)

    def first_known(self, *args: Any) -> Any:
        return self._do("first_known", *args)

    def get(self, *args: Any) -> Any:
        return self._do("get", *args)

    def list(self, *args: Any) -> Any:
        return self._do("list", *args)

    def apply(self, *args: Any) -> Any:
        return self._do("apply", *args)

    def patch(self, *args: Any) -> Any:
        return self._do("patch", *args)

    def create(self, *args: Any) -> Any:
        return self._do("create", *args)

    def delete(self, *args: Any) -> Any:
        return self._do("delete", *args)

    def replace_status(self, *args: Any) -> Any:
        return self._do("replace_status", *args)


class Killed(BaseException):
    """The operator's process ends here, without warning."""


class Mortal(Counting):
    """A `Cluster` whose operator is killed before one of its calls."""

    def __init__(self, cluster: Cluster, at: int) -> None:
        super().__init__(cluster)
        self._at = at

    def before(self, call: int) -> None:
        if call == self._at:
            raise Killed


class Failing(Counting):
    """A `Cluster` whose API server answers some calls with an error."""

    def __init__(self, cluster: Cluster, code: int, fails: Callable[[int], bool]) -> None:
        super().__init__(cluster)
        self._code, self._fails = code, fails

    def before(self, call: int) -> None:
        if self._fails(call):
            raise ClusterError(self._code, "Injected", "by the test")


def install_crd() -> None:
    """The CRD of this very source on the cluster of KUBECONFIG, but for the CEL rules.

    Servers before 1.25 do not know them, and then it is the operator that must refuse what they would.
    """
    config.load_kube_config()
    api = client.ApiextensionsV1Api()
    wanted = _without_rules(crd())
    name = wanted["metadata"]["name"]
    try:
        api.create_custom_resource_definition(wanted)
    except client.ApiException as error:
        if error.status != 409:
            raise
        there = api.read_custom_resource_definition(name)
        wanted["metadata"]["resourceVersion"] = there.metadata.resource_version
        api.replace_custom_resource_definition(name, wanted)


@contextmanager
def pod_monitors() -> Iterator[None]:
    """Makes the API server know PodMonitors meanwhile, as it would with Prometheus' own operator."""
    config.load_kube_config()
    api, (kind,) = client.ApiextensionsV1Api(), names.POD_MONITORS
    group, version = kind.api_version.split("/")
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    spec = {
        "group": group,
        "scope": "Namespaced",
        "names": {"kind": kind.kind, "plural": kind.plural},
        "versions": [{"name": version, "served": True, "storage": True, "schema": schema}],
    }
    name = f"{kind.plural}.{group}"
    api.create_custom_resource_definition({"metadata": {"name": name}, "spec": spec})
    try:
        eventually(lambda: connect().first_known((kind,)) == kind)
        yield
    finally:
        api.delete_custom_resource_definition(name)
        eventually(lambda: connect().first_known((kind,)) is None)


def eventually(holds: Callable[[], bool], seconds: float = 40) -> None:
    """Waits for an API server, or an operator, to come to a state."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def _without_rules(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {key: _without_rules(each) for key, each in schema.items() if key != "x-kubernetes-validations"}
    return [_without_rules(each) for each in schema] if isinstance(schema, list) else schema


def names_of(children: Iterable[Object]) -> set[str]:
    return {child["metadata"]["name"] for child in children}
