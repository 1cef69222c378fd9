"""Passes over a cluster that is a dictionary, in which something rewrites what is applied, or refuses it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from typing import Any

import pytest

from pipedec_operator import names
from pipedec_operator.causes import condition
from pipedec_operator.cluster import ClusterError
from pipedec_operator.contests import OFTEN
from pipedec_operator.manifests import Setting
from pipedec_operator.names import Kind, Object
from pipedec_operator.reconcile import Outcome, Reconciler
from tests.control_plane.samples import manifest, pod_of, rolled_out

POLICY = "policy.example/was-here"
SPEC: dict[str, Any] = {"pipeline": {"stages": 2}}


class Store:
    """A `Cluster` of which every Deployment is rolled out at once, after `admit` has had its way with it."""

    def __init__(self, admit: Callable[[Object], None] = lambda child: None) -> None:
        self.admit = admit
        self.objects: dict[tuple[str, str], Object] = {}
        self.applied: list[str] = []

    def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        return deepcopy(self.objects.get((kind.kind, name)))

    def list(self, kind: Kind, namespace: str, selector: dict[str, str]) -> list[Object]:
        if kind == names.POD:
            return [pod_of(each) for (found, _), each in self.objects.items() if found == names.WORKLOAD.kind]
        return [deepcopy(each) for (found, _), each in self.objects.items() if found == kind.kind]

    def apply(self, kind: Kind, child: Object) -> Object:
        live = deepcopy(child)
        self.admit(live)
        self.applied.append(f"{kind.kind} {child['metadata']['name']}")
        return self.put(rolled_out(live) if kind == names.WORKLOAD else live)

    def patch(self, kind: Kind, child: Object, patch: Object) -> Object:
        raise NotImplementedError

    def create(self, kind: Kind, child: Object) -> Object:
        self.admit(deepcopy(child))
        return self.put({**child, "data": child.get("stringData", {})})

    def delete(self, kind: Kind, child: Object) -> None:
        del self.objects[kind.kind, child["metadata"]["name"]]

    def replace_status(self, kind: Kind, resource: Object) -> Object:
        return self.put(resource)

    def first_known(self, kinds: Iterable[Kind]) -> Kind | None:
        return None

    def put(self, thing: Object) -> Object:
        name = thing["metadata"]["name"]
        live = deepcopy(thing)
        live["metadata"] = {"uid": f"{thing['kind']}-{name}", "generation": 1, "resourceVersion": "1"} | live[
            "metadata"
        ]
        if thing["kind"] == names.WORKLOAD.kind:
            live["status"]["availableReplicas"] = live["spec"]["replicas"]
        self.objects[thing["kind"], name] = live
        return deepcopy(live)

    def ask(self, **spec: Any) -> None:
        generation = self.objects.get((names.KIND, "lion"), {}).get("metadata", {}).get("generation", 0) + 1
        asked = manifest(**SPEC | spec)
        asked["metadata"] |= {"namespace": "lab", "generation": generation}
        if before := self.objects.get((names.KIND, "lion")):
            asked["status"] = before.get("status", {})
        self.put(asked)

    def images(self) -> set[str]:
        return {
            each["spec"]["template"]["spec"]["containers"][0]["image"]
            for (kind, _), each in self.objects.items()
            if kind == names.WORKLOAD.kind
        }

    def ready(self) -> Object:
        return condition(self.objects[names.KIND, "lion"].get("status", {}), "Ready")


def operator(store: Store) -> Callable[[], Outcome]:
    reconciler = Reconciler(store, Setting("stage:1", "draft:1", "9.9.9"))
    return lambda: reconciler.reconcile("lab", "lion")


def pulls_always(child: Object) -> None:
    """A policy that has its say on every write of a Deployment."""
    if child["kind"] == names.WORKLOAD.kind:
        child["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "Always"
        child["metadata"].setdefault("annotations", {})[POLICY] = "yes"


@pytest.mark.parametrize("replicas", [1, 2])
def test_a_policy_that_rewrites_deployments_stops_no_rollout(replicas: int) -> None:
    store = Store(pulls_always)
    step = operator(store)
    store.ask(replicas=replicas)
    for _ in range(3):
        step()
    store.ask(replicas=replicas, images={"stage": "other:2", "draft": "other:2"})
    for _ in range(4 * replicas):
        step()
    assert store.images() == {"other:2"}
    store.applied.clear()
    assert not step().again
    assert store.applied == []


def test_an_operator_that_begins_anew_asks_for_the_pass_that_no_event_would_wake() -> None:
    store = Store(pulls_always)
    step = operator(store)
    store.ask()
    for _ in range(3):
        step()
    store.ask(images={"stage": "other:2"})
    step = operator(store)
    assert step().again
    while step().again:
        pass
    assert store.images() == {"other:2", "draft:1"}


def test_a_controllers_note_on_a_rewritten_deployment_does_not_have_it_applied_again() -> None:
    store = Store(pulls_always)
    step = operator(store)
    store.ask()
    step()
    step()
    store.applied.clear()
    for (kind, _), each in store.objects.items():
        if kind == names.WORKLOAD.kind:
            each["metadata"]["annotations"]["deployment.kubernetes.io/revision"] = "2"
    step()
    assert store.applied == []


def draft_ports(store: Store) -> list[int]:
    """Ports of the endpoint that the network policy lets clients reach."""
    ingress = store.objects[names.NETWORK_POLICY.kind, "lion-draft"]["spec"]["ingress"]
    return [each["port"] for each in ingress[1]["ports"]]


def test_draft_pods_can_be_reached_at_their_port_until_those_of_another_have_taken_their_place() -> None:
    store = Store()
    step = operator(store)
    store.ask()
    step()
    assert draft_ports(store) == [8000]
    before, refused = store.images(), ClusterError(403, "Denied", "not now")

    def deny(child: Object) -> None:
        if child["kind"] == names.WORKLOAD.kind:
            raise refused

    store.admit = deny
    store.ask(serving={"port": 9100}, images={"draft": "other:2"})
    for _ in range(2):
        step()
    assert store.images() == before
    assert draft_ports(store) == [8000, 9100]
    store.admit = lambda child: None
    step()
    assert draft_ports(store) == [8000, 9100]  # the Deployments are told, and their pods may still be there
    step()
    assert draft_ports(store) == [9100]
    store.applied.clear()
    assert not step().again
    assert store.applied == []


def test_keys_that_are_about_to_go_take_nothing_else_with_them() -> None:
    store = Store()
    step = operator(store)
    store.ask()
    step()
    before = set(store.objects)
    ((_, secret),) = [key for key in store.objects if key[0] == names.SECRET.kind]
    store.objects[names.SECRET.kind, secret]["metadata"]["deletionTimestamp"] = "2026-11-24T12:00:00Z"
    store.applied.clear()
    assert step().again
    assert before <= store.objects.keys()
    assert store.applied == []
    assert store.ready()["status"] == "False"
    del store.objects[names.SECRET.kind, secret]["metadata"]["deletionTimestamp"]
    assert not step().again
    assert store.ready()["status"] == "True"


class Failing:
    """An admission webhook that cannot be reached, or denies (403), in other words every time."""

    def __init__(self, kind: Kind, code: int = 500) -> None:
        self._kind, self._code, self.calls = kind, code, 0

    def __call__(self, child: Object) -> None:
        if child["kind"] == self._kind.kind:
            self.calls += 1
            raise ClusterError(self._code, "Webhook", f"failed calling webhook: port {40000 + self.calls}")


@pytest.mark.parametrize(("kind", "named"), [(names.WORKLOAD, "Deployment lion-0-draft"), (names.SECRET, "webhook")])
def test_a_fault_that_lasts_is_told_once_and_tried_again(kind: Kind, named: str) -> None:
    store = Store(Failing(kind))
    step = operator(store)
    store.ask()
    states = []
    for _ in range(3):
        with pytest.raises(ClusterError, match="failed calling webhook"):
            step()
        states.append(deepcopy(store.objects[names.KIND, "lion"]["status"]))
    assert store.ready()["reason"] == "Blocked"
    assert named in store.ready()["message"]
    assert states[0] == states[2]  # else each write would wake the next pass
    assert [name for found, name in store.objects if found == names.EVENT.kind]
    store.admit = lambda child: None
    for _ in range(3):
        step()
    assert store.ready()["status"] == "True"


@pytest.mark.parametrize("kind", [names.SECRET, names.SERVICE])
def test_a_refusal_is_told_once_though_in_other_words_every_time(kind: Kind) -> None:
    store, now = Store(Failing(kind, 403)), ["2026-01-01T00:00:00Z"]
    reconciler = Reconciler(store, Setting("stage:1", "draft:1", "9.9.9"), clock=lambda: now[0])
    store.ask()
    assert reconciler.reconcile("lab", "lion").again
    assert store.ready()["reason"] == "FailedCreate"
    assert store.ready()["message"].startswith(f"{kind.kind} lion")
    assert condition(store.objects[names.KIND, "lion"]["status"], "Progressing")["status"] == "True"
    assert store.objects[names.KIND, "lion"]["status"]["readyStages"] == "0/2"  # else none would be missed
    reconciler.reconcile("lab", "lion")  # what could be made is there by now
    first = deepcopy(store.objects)
    assert reconciler.reconcile("lab", "lion").again
    assert {name for _, name in store.objects} == {name for _, name in first}, "another event"
    assert store.objects[names.KIND, "lion"] == first[names.KIND, "lion"]  # else each write would wake the next pass
    now[0] = "2026-01-01T00:06:00Z"
    reconciler.reconcile("lab", "lion")
    assert store.ready()["message"] != condition(first[names.KIND, "lion"]["status"], "Ready")["message"]
    store.admit = lambda child: None
    for _ in range(3):
        reconciler.reconcile("lab", "lion")
    assert store.ready()["status"] == "True"


@pytest.mark.parametrize("code", [403, 429, 500, 0])
def test_the_status_is_written_whatever_becomes_of_the_events(code: int, caplog: pytest.LogCaptureFixture) -> None:
    store = Store(fail := Failing(names.EVENT, code))
    store.ask()
    assert not operator(store)().again
    assert store.ready()
    assert fail.calls == 1  # each may take as long as a server that does not answer
    (line,) = [each.getMessage() for each in caplog.records if "events" in each.getMessage()]
    assert "namespace lab" in line
    assert "failed calling webhook" in line


def test_an_event_is_told_after_the_status_that_it_is_about() -> None:
    ready: list[str] = []

    def note(child: Object) -> None:
        if child["kind"] == names.EVENT.kind:
            ready.append(store.ready()["status"])

    store = Store(note)
    store.ask()
    step = operator(store)
    for _ in range(3):
        step()
    assert ready == ["False", "True"]  # Created, and Ready


class Mute(Store):
    """A cluster to which no status can be written either."""

    def replace_status(self, kind: Kind, resource: Object) -> Object:
        raise ClusterError(503, "ServiceUnavailable", "try again")


def test_a_fault_in_the_way_of_its_own_report_is_still_the_one_that_is_raised() -> None:
    store = Mute(Failing(names.WORKLOAD))
    store.ask()
    with pytest.raises(ClusterError, match="failed calling webhook"):
        operator(store)()


def test_no_new_pod_stands_open_because_its_network_policy_was_refused() -> None:
    def refuse(child: Object) -> None:
        if child["kind"] == names.NETWORK_POLICY.kind and "draft" in child["metadata"]["name"]:
            raise ClusterError(422, "Invalid", "10.0.0.0 is not a CIDR")

    store = Store(refuse)
    step = operator(store)
    store.ask()
    assert step().again
    assert store.images() == set()
    assert store.ready()["reason"] == "FailedCreate"
    assert "10.0.0.0 is not a CIDR" in store.ready()["message"]
    store.admit = lambda child: None
    step()
    assert store.images() == {"stage:1", "draft:1"}


def test_what_somebody_else_changes_back_again_and_again_is_left_alone_for_a_while() -> None:
    """Two operators that keep the same namespace, with different images."""
    store, now = Store(), ["2026-01-01T00:00:00Z"]
    ours, theirs = (
        Reconciler(store, Setting(image, image, "9.9.9"), clock=lambda: now[0]) for image in ("ours:1", "theirs:1")
    )
    store.ask()
    for _ in range(20):
        ours.reconcile("lab", "lion")
        theirs.reconcile("lab", "lion")
    assert 2 * OFTEN <= store.applied.count("Deployment lion-0-draft") <= 2 * OFTEN + 2
    assert store.ready()["reason"] == "Blocked"
    assert "another operator" in store.ready()["message"]
    store.applied.clear()
    now[0] = "2026-01-01T00:02:00Z"
    assert not ours.reconcile("lab", "lion").again
    assert store.images() == {"ours:1"}
