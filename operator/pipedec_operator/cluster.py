"""The API server. The only file that talks to it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import kubernetes
import urllib3
from kubernetes.client import ApiClient, ApiException, Configuration
from kubernetes.dynamic import DynamicClient

from pipedec.errors import PipeDecError
from pipedec_operator.names import MANAGER, Kind, Object

APPLY = "application/apply-patch+yaml"  # server-side apply; JSON is YAML
MERGE = "application/merge-patch+json"
TIMEOUT = (5.0, 30.0)  # seconds to connect, and to read


class ClusterError(Exception):
    """A call that the API server refused, or did not answer (`code` 0).

    `code` is the HTTP status, `reason` Kubernetes' word for it, `retry_after` seconds if the server said so.
    """

    def __init__(self, code: int, reason: str, message: str, retry_after: float | None = None) -> None:
        self.code, self.reason, self.message, self.retry_after = code, reason, message, retry_after
        super().__init__(f"{reason or code}: {message}")

    @property
    def passing(self) -> bool:
        """Whether the same call may succeed later though nothing is changed: overload, faults, lost races."""
        return self.code in (0, 408, 409, 410, 429) or self.code >= 500


class Cluster(Protocol):
    """What the operator asks of a cluster. Every method may raise `ClusterError`."""

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """An object; None if there is none."""

    def list(self, kind: Kind, namespace: str, selector: dict[str, str]) -> list[Object]:
        """The objects of a kind with these labels."""

    def apply(self, kind: Kind, child: Object) -> Object:
        """States an object by server-side apply, and takes its fields back from whoever else set them."""

    def patch(self, kind: Kind, child: Object, patch: Object) -> Object:
        """Merges a patch into an object; null takes a field away."""

    def create(self, kind: Kind, child: Object) -> Object:
        """Makes an object; a conflict (409) if it is there."""

    def delete(self, kind: Kind, child: Object) -> None:
        """Deletes this very object, by its uid; nothing if it is gone already."""

    def replace_status(self, kind: Kind, resource: Object) -> Object:
        """Writes a status; a conflict (409) if the object was changed since it was read."""

    def first_known(self, kinds: Iterable[Kind]) -> Kind | None:
        """The first of these kinds that the cluster serves."""


class ApiServer:
    """`Cluster` over HTTP, by the official client. Safe to use from several threads."""

    def __init__(self, client: ApiClient, count: Callable[[str, int], None] = lambda verb, code: None) -> None:
        # Requests on plain paths and plain JSON: the typed models cost several times the memory and time.
        self._client = DynamicClient(client, discoverer=lambda *_: None)
        self._count = count

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        try:
            found: Object = self._call("GET", _path(kind, namespace, name))
            return found
        except ClusterError as error:
            if error.code == 404:
                return None
            raise

    def list(self, kind: Kind, namespace: str, selector: dict[str, str]) -> list[Object]:
        labels = ",".join(f"{label}={value}" for label, value in selector.items())
        found = self._call("GET", _path(kind, namespace), label_selector=labels)
        return [{**item, "apiVersion": kind.api_version, "kind": kind.kind} for item in found["items"]]

    def apply(self, kind: Kind, child: Object) -> Object:
        query = [("fieldManager", MANAGER), ("force", "true")]
        result: Object = self._call("PATCH", _path_of(kind, child), child, content_type=APPLY, query_params=query)
        return result

    def patch(self, kind: Kind, child: Object, patch: Object) -> Object:
        path = _path_of(kind, child)
        result: Object = self._call("PATCH", path, patch, content_type=MERGE, field_manager=MANAGER)
        return result

    def create(self, kind: Kind, child: Object) -> Object:
        result: Object = self._call("POST", _path(kind, child["metadata"]["namespace"]), child, field_manager=MANAGER)
        return result

    def delete(self, kind: Kind, child: Object) -> None:
        options = {"propagationPolicy": "Background", "preconditions": {"uid": child["metadata"]["uid"]}}
        try:
            self._call("DELETE", _path_of(kind, child), options)
        except ClusterError as error:
            if error.code not in (404, 409):  # 409: that object is gone, and another has its name
                raise

    def replace_status(self, kind: Kind, resource: Object) -> Object:
        result: Object = self._call("PUT", _path_of(kind, resource) + "/status", resource, field_manager=MANAGER)
        return result

    def first_known(self, kinds: Iterable[Kind]) -> Kind | None:
        for kind in kinds:
            try:
                served = self._call("GET", kind.path)
            except ClusterError as error:
                if error.code in (403, 404):
                    continue
                raise
            if any(each["name"] == kind.plural for each in served["resources"]):
                return kind
        return None

    def _call(self, verb: str, path: str, body: Object | None = None, **params: Any) -> Any:
        try:
            response = self._client.request(verb, path, body, serialize=False, _request_timeout=TIMEOUT, **params)
            data = json.loads(response.data)
        except ApiException as error:
            self._count(verb, error.status or 0)
            raise _cluster_error(error) from error
        except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
            self._count(verb, 0)
            raise ClusterError(0, "Unreachable", f"{verb} {path}: {error}") from error
        self._count(verb, response.status)
        return data


def connect(count: Callable[[str, int], None] = lambda verb, code: None) -> ApiServer:
    """The API server of the pod that this runs in, else of KUBECONFIG's current context."""
    configuration = Configuration()
    try:
        kubernetes.config.load_incluster_config(client_configuration=configuration)
    except kubernetes.config.ConfigException as inside:
        try:
            kubernetes.config.load_kube_config(client_configuration=configuration)
        except kubernetes.config.ConfigException as error:
            raise PipeDecError(f"no cluster to connect to: in a pod: {inside} With KUBECONFIG: {error}") from error
    configuration.retries = False  # the work queue backs off, and says so
    return ApiServer(ApiClient(configuration), count)


def _path(kind: Kind, namespace: str, name: str = "") -> str:
    return f"{kind.path}/namespaces/{namespace}/{kind.plural}" + (f"/{name}" if name else "")


def _path_of(kind: Kind, child: Object) -> str:
    return _path(kind, child["metadata"]["namespace"], child["metadata"]["name"])


def _cluster_error(error: ApiException) -> ClusterError:
    try:
        status = json.loads(error.body or "{}")
    except ValueError:
        status = {}
    status = status if isinstance(status, dict) else {}
    seconds = (error.headers or {}).get("Retry-After", "")
    code, message = error.status or 0, str(status.get("message") or error.body or "")
    if code == 500 and "typed patch object" in message:
        code = 422  # Kubernetes before 1.21 calls an apply of the wrong type its own fault
    reason = str(status.get("reason") or error.reason or "")
    return ClusterError(code, reason, message, float(seconds) if seconds.isdecimal() else None)
