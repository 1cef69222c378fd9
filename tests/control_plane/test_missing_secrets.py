"""Pods that wait for Secrets: the status names these, by passes over a cluster that is a dictionary."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from pipedec_operator import names
from pipedec_operator.causes import condition
from pipedec_operator.cluster import ClusterError
from pipedec_operator.names import Kind, Object
from tests.control_plane.samples import container, pod_of
from tests.control_plane.test_passes import Store, operator

CREATING: Object = container(waiting={"reason": "ContainerCreating"})
NO_ENV: Object = container(waiting={"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'})
NO_IMAGE: Object = container(image="i:1", waiting={"reason": "ImagePullBackOff", "message": "back-off"})


class Waiting(Store):
    """A cluster whose kubelet starts no container, for this reason."""

    def __init__(self, state: Object) -> None:
        super().__init__()
        self.state, self.looked = state, list[str]()

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        self.looked.append(f"{kind.kind} {name}")
        return super().get(kind, namespace, name)

    def list(self, kind: Kind, namespace: str, selector: dict[str, str]) -> list[Object]:
        if kind != names.POD:
            return super().list(kind, namespace, selector)
        workloads = [each for (found, _), each in self.objects.items() if found == names.WORKLOAD.kind]
        pods = [pod_of(each, ready=False, phase="Pending", **self.state) for each in workloads]
        for pod, workload in zip(pods, workloads, strict=True):
            pod["spec"] |= deepcopy(workload["spec"]["template"]["spec"])
        return pods

    def secret(self, name: str, **data: str) -> None:
        self.put({"kind": names.SECRET.kind, "metadata": {"name": name}, "data": data})

    def told(self, kind: str) -> Object:
        return condition(self.objects[names.KIND, "lion"]["status"], kind)


def test_a_secret_that_a_volume_waits_for_is_named_until_it_is_there() -> None:
    store = Waiting(CREATING)
    store.secret("hf", token="")
    store.ask()
    step = operator(store)
    step()  # there are no pods yet
    assert step().again  # nobody tells of a Secret that has come
    assert store.told("DraftReady")["reason"] == store.ready()["reason"] == "ContainerConfigError"
    assert store.ready()["message"] == (
        "0/draft: pod lion-0-draft-7d9f-x2x cannot start: Secret keys is missing; create it with the key api, or name "
        "another in spec.serving.apiKeySecretRef.name"
    )
    assert store.told("StagesReady")["reason"] == "WaitingForStages"
    told = [each["message"] for (kind, _), each in store.objects.items() if kind == names.EVENT.kind]
    assert [each for each in told if "Secret keys is missing" in each]
    store.secret("keys", apikey="")
    assert step().again
    assert "Secret keys has no key api; add it" in store.ready()["message"]
    store.secret("keys", api="")
    assert not step().again
    assert "keys" not in store.ready()["message"]


def test_a_secret_that_a_variable_needs_is_named_with_its_field() -> None:
    store = Waiting(NO_ENV)
    store.secret("keys", api="")
    store.ask()
    step = operator(store)
    step()
    store.looked.clear()
    step()
    assert (
        "Secret hf is missing; create it with the key token, or name another in spec.model.tokenSecretRef.name"
        in (store.ready()["message"])
    )
    assert store.ready()["message"].startswith("0/stage-0: ")  # all three wait for it
    assert store.looked.count("Secret hf") == 1


def test_a_pull_secret_that_is_missing_is_told_with_the_image() -> None:
    store = Waiting(NO_IMAGE)
    store.ask(images={"pullSecrets": [{"name": "registry"}]})
    step = operator(store)
    step()
    step()
    assert store.ready()["reason"] == "ImagePullError"
    for part in ("ImagePullBackOff", "Secret registry is missing", "spec.images.pullSecrets[0].name"):
        assert part in store.ready()["message"]


class Narrow(Waiting):
    """An operator that may look at no Secrets but its own, or whose server fails at those."""

    code = 403

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        if kind == names.SECRET and name in ("hf", "keys"):
            raise ClusterError(self.code, "Refused", "not that one")
        return super().get(kind, namespace, name)


def test_what_may_not_be_looked_at_counts_as_there(caplog: Any) -> None:
    store = Narrow(CREATING)
    store.ask()
    step = operator(store)
    step()
    assert not step().again
    assert "is starting" in store.ready()["message"]
    assert "Secret keys in namespace lab cannot be looked at: not that one" in caplog.text


def test_a_server_that_fails_at_one_secret_keeps_nothing_from_being_done(caplog: Any) -> None:
    """As for ever, if it lacks the key to decrypt it."""
    store = Narrow(CREATING)
    store.ask()
    step = operator(store)
    step()
    store.code = 500
    caplog.clear()
    assert not step().again
    assert "is starting" in store.ready()["message"]
    assert caplog.text.count("cannot be looked at") == 2, "once each"
