"""A cluster, asked through the official client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pipedec.doctor.cluster import ClusterFacts, Object, Refusal, kept_namespaces
from pipedec.errors import PipeDecError
from pipedec.spec import PipeDecDeployment
from pipedec.spec.crd import GROUP, PLURAL, VERSION

TIMEOUT = (5.0, 30.0)  # seconds to connect, and to read
OPERATOR_LABELS = "app.kubernetes.io/part-of=pipedec,app.kubernetes.io/component=operator"

_KEPT = ("get", "list", "watch", "create", "patch", "delete")
# What the chart's role gives the operator; a test compares the two.
RIGHTS: dict[tuple[str, str], tuple[str, ...]] = {
    (GROUP, PLURAL): ("get", "list", "watch"),
    (GROUP, f"{PLURAL}/status"): ("update",),
    (GROUP, f"{PLURAL}/finalizers"): ("update",),
    ("", "serviceaccounts"): _KEPT,
    ("", "configmaps"): _KEPT,
    ("", "services"): _KEPT,
    ("", "secrets"): ("get", "create", "patch", "delete"),
    ("", "pods"): ("list", "watch"),
    ("", "events"): ("create",),
    ("apps", "deployments"): _KEPT,
    ("networking.k8s.io", "networkpolicies"): _KEPT,
    ("policy", "poddisruptionbudgets"): _KEPT,
    ("monitoring.coreos.com", "podmonitors"): _KEPT,
}

T = TypeVar("T")


class Api:
    """Plain paths and plain JSON of the API server of KUBECONFIG's current context.

    Raises `PipeDecError` if the client is not installed, or there is no such context.
    """

    def __init__(self) -> None:
        try:
            from kubernetes import client, config
            from kubernetes.dynamic import DynamicClient
        except ImportError as error:
            remedy = "install it: pip install 'pipedec[operator]'"
            raise PipeDecError(f"--cluster needs the Kubernetes client, which is not here; {remedy}") from error
        configuration = client.Configuration()
        try:
            config.load_kube_config(client_configuration=configuration)
        except config.ConfigException as error:
            raise PipeDecError(
                f"--cluster: no cluster in KUBECONFIG: {error}; set it, or its current context"
            ) from error
        configuration.retries = False
        self.server: str = configuration.host
        self._client = DynamicClient(client.ApiClient(configuration), discoverer=lambda *_: None)
        self._refused = client.ApiException

    def get(self, path: str, labels: str | None = None) -> Any:
        """What is at a path, as JSON; of a list, the items with these labels."""
        return self._call("GET", path, label_selector=labels)

    def post(self, path: str, body: Object) -> Any:
        return self._call("POST", path, body)

    def _call(self, verb: str, path: str, body: Object | None = None, **query: Any) -> Any:
        """The answer as JSON. Raises `Refused` for a refusal and `OSError` where nobody answers."""
        import urllib3

        try:
            answer = self._client.request(verb, path, body, serialize=False, _request_timeout=TIMEOUT, **query)
            return json.loads(answer.data)
        except self._refused as error:
            raise Refused(error.status or 0, _message(error.body) or str(error.reason)) from error
        except urllib3.exceptions.HTTPError as error:
            raise OSError(str(error)) from error


class Refused(Exception):
    """The API server answered with an error."""

    def __init__(self, code: int, message: str) -> None:
        self.code, self.message = code, message
        super().__init__(f"{code}: {message}")


def gather_cluster(namespace: str | None, manifest: PipeDecDeployment | None) -> ClusterFacts:
    """Asks for everything once. With a namespace, only its PipeDecDeployments are looked at."""
    api = Api()
    try:
        version = api.get("/version")
    except (OSError, Refused) as error:
        return ClusterFacts(api.server, unreachable=str(error), manifest=manifest)
    operators = _or_refusal(lambda: _list(api, "/apis/apps/v1/deployments", OPERATOR_LABELS))
    scope = f"/namespaces/{namespace}" if namespace else ""
    return ClusterFacts(
        api.server,
        version=version,
        crd=_or_refusal(
            lambda: _found(api, f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{PLURAL}.{GROUP}")
        ),
        operators=operators,
        allowed=None if isinstance(operators, Refusal) else _allowed(api, operators),
        nodes=_or_refusal(lambda: _list(api, "/api/v1/nodes")),
        apis=frozenset(v["groupVersion"] for group in api.get("/apis")["groups"] for v in group["versions"]),
        storage_classes=_or_refusal(lambda: _list(api, "/apis/storage.k8s.io/v1/storageclasses")),
        resources=_or_refusal(lambda: _list(api, f"/apis/{GROUP}/{VERSION}{scope}/{PLURAL}")),
        manifest=manifest,
    )


def _or_refusal(ask: Callable[[], T]) -> T | Refusal:
    try:
        return ask()
    except Refused as error:
        return Refusal(error.message)


def _found(api: Api, path: str, labels: str | None = None) -> Object | None:
    """What is at a path; None if there is nothing."""
    try:
        found: Object = api.get(path, labels)
        return found
    except Refused as error:
        if error.code == 404:
            return None
        raise


def _list(api: Api, path: str, labels: str | None = None) -> list[Object]:
    """The items at a path; none where the kind itself is unknown."""
    found = _found(api, path, labels)
    return [] if found is None else list(found["items"])


def _allowed(api: Api, operators: list[Object]) -> dict[str, bool] | None:
    """Whether the operators' accounts have each right wherever they watch; None if that may not be asked."""
    if not operators:
        return None
    allowed: dict[str, bool] = {}
    try:
        for account, namespace in _accounts(operators):
            for (group, resource), verbs in RIGHTS.items():
                for verb in verbs:
                    right = f"{verb} {resource}" + (f".{group}" if group else "")
                    allowed[right] = allowed.get(right, True) and _may(api, account, namespace, group, resource, verb)
    except Refused:
        return None
    return allowed


def _accounts(operators: list[Object]) -> Iterator[tuple[str, str]]:
    """Each operator's user name, with each namespace that it keeps; empty: all."""
    for each in operators:
        account = each["spec"]["template"]["spec"].get("serviceAccountName", "default")
        for namespace in kept_namespaces(each):
            yield f"system:serviceaccount:{each['metadata']['namespace']}:{account}", namespace


def _may(api: Api, account: str, namespace: str, group: str, resource: str, verb: str) -> bool:
    name, _, below = resource.partition("/")
    what = {"namespace": namespace, "group": group, "resource": name, "subresource": below, "verb": verb}
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {"user": account, "groups": _groups(account), "resourceAttributes": what},
    }
    answer = api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    return bool(answer["status"]["allowed"])


def _groups(account: str) -> list[str]:
    """Groups that every service account is in."""
    everyone = "system:serviceaccounts"
    return [everyone, f"{everyone}:{account.split(':')[2]}", "system:authenticated"]


def _message(body: Any) -> str:
    try:
        return str(json.loads(body)["message"])
    except (ValueError, KeyError, TypeError):
        return ""
