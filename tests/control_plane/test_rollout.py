"""Changes interrupt one pipeline at a time, and no draft pod loses its stages while it ends its requests.

A small world plays Deployment controllers, kubelets and the operator, in every order that chance comes upon.
"""

from __future__ import annotations

from copy import deepcopy
from random import Random
from typing import Any

import pytest
import yaml

from pipedec_operator import names
from pipedec_operator.names import Object
from pipedec_operator.plan import Delete, key, plan
from pipedec_operator.rollout import endpoint_ports, in_turn
from tests.control_plane.samples import OWNER, children, pod_of

NOW, BEFORE, LATER = "2026-01-01T00:00:00Z", "2025-12-31T23:00:00Z", "2026-01-01T00:01:00Z"
SPEC: dict[str, Any] = {"pipeline": {"stages": 2}, "replicas": 2}
CHANGES: dict[str, dict[str, Any]] = {
    "model": {"model": {"uri": "hf://org/other"}},
    "split": {"pipeline": {"stages": 3}},
    "fewer stages": {"pipeline": {"stages": 1}},
    "policy": {"speculation": {"policy": "pipedec"}},
    "stage image": {"images": {"stage": "other:2"}},
    "node": {"pipeline": {"stages": 2, "nodeSelector": {"gpu": "big"}}},
}


def test_a_draft_pod_that_ends_is_still_to_be_reached_at_its_port() -> None:
    old = children(serving={"port": 9100})["Deployment/lion-0-draft"]
    there = children()
    pod = pod_of(old)
    pod["spec"] |= old["spec"]["template"]["spec"]
    pod["metadata"]["deletionTimestamp"] = LATER
    assert endpoint_ports(there.values(), []) == {8000}
    assert endpoint_ports(there.values(), [pod]) == {8000, 9100}
    pod["status"]["phase"] = "Succeeded"
    assert endpoint_ports(there.values(), [pod]) == {8000}
    assert endpoint_ports([], []) == set()


class World:
    """What an API server would hold of a resource, and those who act on it, one small step at a time."""

    def __init__(self) -> None:
        self.desired: list[Object] = []
        self.children: dict[tuple[str, str], Object] = {}
        self.pods: dict[str, Object] = {}
        self._made = 0

    def ask(self, **spec: Any) -> None:
        self.desired = list(children(**SPEC | spec).values())

    def operate(self) -> None:
        """One pass."""
        observed = list(self.children.values())
        turns = in_turn(plan(self.desired, observed, OWNER.uid).actions, observed, self.pods.values(), NOW)
        for action in turns.now:
            if isinstance(action, Delete):
                del self.children[key(action.child)]
                self._orphans_end(action.child)
                continue
            live = deepcopy(action.child)
            before = self.children.get(key(live), {"metadata": {"generation": 0}})
            live["metadata"]["generation"] = before["metadata"]["generation"] + (before.get("spec") != live.get("spec"))
            if "status" in before:
                live["status"] = before["status"]
            self.children[key(live)] = live

    def _orphans_end(self, workload: Object) -> None:
        for pod in self._pods_of(workload) if workload["kind"] == names.WORKLOAD.kind else ():
            pod["metadata"]["deletionTimestamp"] = LATER

    def steps(self) -> list[Any]:
        """Every step that somebody could take now."""
        found: list[Any] = []
        for workload in self.workloads():
            found += [lambda w=workload: self._control(w)] if self._control(workload, dry=True) else []
        for name, pod in self.pods.items():
            if "deletionTimestamp" in pod["metadata"]:
                found.append(lambda n=name: self.pods.pop(n))
            elif not ready(pod) and self._could_be_ready(pod):
                found.append(lambda p=pod: _set_ready(p, True))
        return found

    def _control(self, workload: Object, dry: bool = False) -> bool:
        """A Deployment controller's step, strategy Recreate; whether there was one to take."""
        pods = self._pods_of(workload)
        current = [pod for pod in pods if pod["template"] == workload["spec"]["template"]]
        stale = [pod for pod in pods if pod not in current or not workload["spec"]["replicas"]]
        status = {
            "observedGeneration": workload["metadata"]["generation"],
            "updatedReplicas": len(current) - sum(pod in stale for pod in current),
            "availableReplicas": sum(map(ready, pods)),
        }
        going = [pod for pod in stale if "deletionTimestamp" not in pod["metadata"]]
        making = bool(workload["spec"]["replicas"]) and not pods
        if not (going or making or workload.get("status") != status):
            return False
        if not dry:
            workload["status"] = status
            for pod in going:
                pod["metadata"]["deletionTimestamp"] = LATER
            if making:
                self._made += 1
                pod = deepcopy(pod_of(workload, ready=False)) | {"template": deepcopy(workload["spec"]["template"])}
                pod["wants"] = self._manifest(pod["template"])["spec"]["pipeline"].get("stages", 2)
                pod["metadata"]["name"] = f"{workload['metadata']['name']}-{self._made}"
                self.pods[pod["metadata"]["name"]] = pod
                workload["status"] |= {"updatedReplicas": 1}
        return True

    def settle(self, random: Random) -> None:
        """Steps in any order until nobody has one left; the invariants hold after each."""
        for _ in range(5000):
            if not (steps := self.steps()):
                before = str(self.children)
                self.operate()
                if str(self.children) == before and not self.steps():
                    return
            else:
                random.choice([*steps, self.operate])()
            self._formations_break()
            self.check()
        raise AssertionError("no end")

    def _formations_break(self) -> None:
        for pod in self.pods.values():
            if is_draft(pod) and ready(pod) and not self._could_be_ready(pod):
                _set_ready(pod, False)

    def _could_be_ready(self, pod: Object) -> bool:
        """A stage always, a draft pod with all the stages of its revision that it needs."""
        return not is_draft(pod) or self._stages_of(pod) == pod["wants"]

    def _manifest(self, template: Object) -> Object:
        """The manifest that pods of a template mount."""
        (volume,) = (each for each in template["spec"]["volumes"] if each["name"] == "manifest")
        (config,) = (c for (kind, name), c in self.children.items()
                     if (kind, name) == (names.CONFIG_MAP.kind, volume["configMap"]["name"]))  # fmt: skip
        found: Object = yaml.safe_load(config["data"]["manifest.yaml"])
        return found

    def _stages_of(self, draft: Object) -> int:
        wanted = {label: draft["metadata"]["labels"][label] for label in (names.GROUP_INDEX, names.REVISION)}
        return sum(
            not is_draft(pod) and ready(pod) and wanted.items() <= pod["metadata"]["labels"].items()
            for pod in self.pods.values()
        )

    def check(self) -> None:
        for workload in self.workloads():
            assert self._manifest(workload["spec"]["template"])
        for pod in self.pods.values():
            if is_draft(pod) and "deletionTimestamp" in pod["metadata"] and pod.get("served"):
                assert self._stages_of(pod) == pod["wants"], "a draft pod lost its stages while it drained"

    def serving(self) -> set[str]:
        return {group(pod) for pod in self.pods.values() if is_draft(pod) and ready(pod)}

    def workloads(self) -> list[Object]:
        return [child for (kind, _), child in self.children.items() if kind == names.WORKLOAD.kind]

    def _pods_of(self, workload: Object) -> list[Object]:
        wanted = workload["spec"]["selector"]["matchLabels"].items()
        return [pod for pod in self.pods.values() if wanted <= pod["metadata"]["labels"].items()]


class Careful(World):
    """A world in which all but one of the pipelines serve at any time."""

    least = 0

    def check(self) -> None:
        super().check()
        assert len(self.serving()) >= self.least


def ready(pod: Object) -> bool:
    return "deletionTimestamp" not in pod["metadata"] and pod["status"]["conditions"][0]["status"] == "True"


def _set_ready(pod: Object, state: bool) -> None:
    pod["status"]["conditions"][0]["status"] = str(state)
    pod["served"] = pod.get("served", False) or state


def is_draft(pod: Object) -> bool:
    return bool(pod["metadata"]["labels"][names.COMPONENT] == names.DRAFT)


def group(pod: Object) -> str:
    return str(pod["metadata"]["labels"][names.GROUP_INDEX])


def settled(random: Random, world: Careful | None = None, **spec: Any) -> Careful:
    world = world or Careful()
    world.ask(**spec)
    world.settle(random)
    return world


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("seed", "replicas"), [(0, 2), (1, 2), (2, 3)])
def test_all_but_one_pipeline_serve_all_the_time(change: str, seed: int, replicas: int) -> None:
    random = Random(seed)
    world = settled(random, replicas=replicas)
    assert len(world.serving()) == replicas
    world.least = replicas - 1
    settled(random, world, replicas=replicas, **CHANGES[change])
    assert len(world.serving()) == replicas
    templates = {child["metadata"]["name"]: child["spec"]["template"] for child in world.desired if "template" in
                 child.get("spec", {})}  # fmt: skip
    assert {child["metadata"]["name"]: child["spec"]["template"] for child in world.workloads()} == templates


@pytest.mark.parametrize("seed", range(2))
def test_draft_pods_drain_with_their_stages_when_scaled_in_or_suspended(seed: int) -> None:
    random = Random(seed)
    world = settled(random)
    world.least = 1
    settled(random, world, replicas=1)
    world.least = 0
    settled(random, world, replicas=1, suspend=True)
    assert world.pods == {}
    assert len(settled(random, world).serving()) == 2


@pytest.mark.parametrize("seed", range(2))
def test_a_change_that_never_works_stops_at_the_first_pipeline_and_can_be_mended(seed: int) -> None:
    random = Random(seed)

    class Broken(Careful):
        def _could_be_ready(self, pod: Object) -> bool:
            return "broken" not in str(pod["template"]) and super()._could_be_ready(pod)

    world = settled(random, Broken())
    world.least = 1
    settled(random, world, images={"stage": "broken:1"})
    assert len(world.serving()) == 1
    settled(random, world, images={"stage": "mended:1"})
    assert len(world.serving()) == 2


def test_a_draft_pod_that_was_evicted_is_not_waited_for() -> None:
    """It is kept beside the pod in its place, and stays when that one has gone."""
    world = settled(Random(0), replicas=1)
    world.ask(replicas=1, suspend=True)
    observed, draft = list(world.children.values()), next(filter(is_draft, world.pods.values()))
    actions = plan(world.desired, observed, OWNER.uid).actions
    for phase, waits in (("Running", True), ("Failed", False), ("Succeeded", False)):
        draft["status"]["phase"] = phase
        assert bool(in_turn(actions, observed, world.pods.values(), NOW).later) is waits


def test_a_draft_pod_on_a_lost_node_is_not_waited_for_for_ever() -> None:
    world = settled(Random(0), replicas=1)
    world.ask(replicas=1, images={"stage": "other:1"})
    observed, draft = list(world.children.values()), next(filter(is_draft, world.pods.values()))
    actions = plan(world.desired, observed, OWNER.uid).actions
    for deadline, waits in ((LATER, True), ("2025-12-31T23:59:30Z", True), (BEFORE, False)):
        draft["metadata"]["deletionTimestamp"] = deadline
        assert bool(in_turn(actions, observed, world.pods.values(), NOW).later) is waits
