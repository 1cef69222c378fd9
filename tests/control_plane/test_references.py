"""Which Secrets and ConfigMaps a pod that does not start is waiting for, and what is told of those that do not do."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest

from pipedec_operator import names
from pipedec_operator.names import Object
from pipedec_operator.references import Reference, field_of, lack, needed
from tests.control_plane.samples import container, pod_of, workloads

DRAFT, STAGE = "Deployment/lion-0-draft", "Deployment/lion-0-stage-0"
TOKEN = Reference(names.SECRET, "hf", ("token",))
API_KEY = Reference(names.SECRET, "keys", ("api",))


def starting(workload: str = DRAFT, reason: str = "ContainerCreating", **spec: Any) -> Object:
    """A pod whose container waits for this reason."""
    child = workloads(**spec)[workload]
    pod = pod_of(child, ready=False, phase="Pending", **container(waiting={"reason": reason}))
    pod["spec"] |= deepcopy(child["spec"]["template"]["spec"])
    return pod


@pytest.mark.parametrize("reason", ["ContainerCreating", "CreateContainerConfigError"])
def test_a_pod_needs_what_the_resource_names(reason: str) -> None:
    assert needed(starting(DRAFT, reason)) == [API_KEY, TOKEN]
    assert needed(starting(STAGE, reason)) == [TOKEN]


def test_a_pod_needs_what_its_own_volumes_and_variables_name() -> None:
    pipeline = {
        "stages": 1,
        "env": [
            {"name": "A", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "a"}}},
            {"name": "B", "valueFrom": {"secretKeyRef": {"name": "perhaps", "key": "b", "optional": True}}},
            {"name": "C", "value": "c"},
        ],
        "volumes": [
            {"name": "ca", "configMap": {"name": "ca"}},
            {"name": "perhaps", "secret": {"secretName": "perhaps", "optional": True}},
            {
                "name": "all",
                "projected": {"sources": [{"secret": {"name": "p", "items": [{"key": "k", "path": "k"}]}}]},
            },
            {"name": "disk", "persistentVolumeClaim": {"claimName": "disk"}},
        ],
    }
    assert needed(starting(STAGE, pipeline=pipeline, model={"uri": "hf://a/b"})) == [
        Reference(names.CONFIG_MAP, "ca", ()),
        Reference(names.SECRET, "p", ("k",)),
        Reference(names.CONFIG_MAP, "settings", ("a",)),
    ]


def test_a_pod_that_cannot_pull_its_image_needs_the_secrets_for_that() -> None:
    images = {"pullSecrets": [{"name": "registry"}]}
    assert needed(starting(reason="ImagePullBackOff", images=images)) == [Reference(names.SECRET, "registry", ())]


def test_a_pod_of_which_the_kubelet_has_said_nothing_yet_is_looked_at() -> None:
    pod = starting()
    pod["status"]["containerStatuses"] = []
    assert needed(pod) == [API_KEY, TOKEN]


@pytest.mark.parametrize("state", ["running", "crashing", "ended", "going", "placed nowhere"])
def test_other_pods_wait_for_nothing(state: str) -> None:
    pod = starting()
    if state == "running":
        pod["status"] |= container(running={})
    elif state == "crashing":
        pod["status"] |= container(3, waiting={"reason": "CrashLoopBackOff"})
    elif state == "ended":
        pod["status"]["phase"] = "Failed"
    elif state == "going":
        pod["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    else:
        del pod["spec"]["nodeName"]
    assert needed(pod) == []


@pytest.mark.parametrize(
    ("live", "told"),
    [
        (None, "Secret keys is missing; create it with the key api, or name another in spec.serving.apiKeySecretRef"),
        ({"data": {"apis": ""}}, "Secret keys has no key api; add it, or name another in spec.serving.apiKeySecretRef"),
        ({"data": None}, "Secret keys has no key api; add it, or name another in spec.serving.apiKeySecretRef"),
        ({"data": {"api": ""}}, ""),
    ],
)  # fmt: skip
def test_what_is_told_names_the_object_its_key_the_field_and_the_remedy(live: Object | None, told: str) -> None:
    assert lack(API_KEY, live, "spec.serving.apiKeySecretRef") == told


def test_a_key_may_be_binary_and_none_may_be_asked_for() -> None:
    ca = Reference(names.CONFIG_MAP, "ca", ())
    assert lack(ca, {}, "") == ""
    assert lack(ca, None, "") == "ConfigMap ca is missing; create it"
    assert lack(ca._replace(keys=("a", "b")), {"binaryData": {"a": ""}, "data": {"b": ""}}, "") == ""


def test_a_field_is_that_which_names_it() -> None:
    """A pod may need more than its resource names: what its ServiceAccount has, or an admission webhook adds."""
    named = {"name": "B", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "ca"}}}
    spec = {
        "model": {"tokenSecretRef": {"name": "other", "key": "hf"}},
        "draft": {
            "env": [{"name": "A", "value": "hf"}, named],
            "volumes": [{"name": "x", "secret": {"secretName": "s"}}],
        },
    }
    assert field_of("hf", spec) == "spec.draft.env[1].valueFrom.secretKeyRef.name"
    assert field_of("s", spec) == "spec.draft.volumes[0].secret.secretName"
    assert field_of("ca", spec) == ""
