"""Spec -> children: their exact text, what a change restarts, and that pods are told what the services read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipedec.config import DraftConfig, StageConfig
from pipedec.errors import PipeDecError
from pipedec.spec import load_manifest, parse_manifest
from pipedec_operator import manifests, names
from pipedec_operator.__main__ import main
from pipedec_operator.manifests import Setting
from pipedec_operator.names import Object
from tests.control_plane.samples import KEYS_HASH, OWNER, SETTING, children, manifest, resource, workloads

GOLDEN, ROOT = Path(__file__).parent / "golden", Path(__file__).parents[2]


def test_children_are_the_golden_ones() -> None:
    """After a wanted change: `python -m tests.control_plane.golden_children > tests/control_plane/golden/lion.yaml`."""
    found = list(children().values())
    assert found == list(yaml.safe_load_all((GOLDEN / "lion.yaml").read_text()))


def test_the_example_has_children() -> None:
    example = load_manifest(Path(__file__).parents[2] / "examples" / "smollm2.yaml")
    found = manifests.children(example, OWNER, SETTING, KEYS_HASH)
    assert sum(child["kind"] == "Deployment" for child in found) == 1 + example.spec.pipeline.num_stages


def env_of(workload: Object) -> dict[str, str]:
    """A container's environment as its process will see it; from elsewhere: <field or secret>."""
    (spec,) = workload["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each.get("value", "10.1.2.3") for each in spec["env"]}


def test_a_stage_is_told_what_it_reads() -> None:
    config = StageConfig.from_env(env_of(children()["Deployment/lion-0-stage-1"]))
    assert (config.stage, config.data_port, config.metrics_port) == (1, names.DATA_PORT, names.METRICS_PORT)
    service = next(name for name in children() if name.startswith("Service/lion-0-")).removeprefix("Service/")
    assert config.head_address == f"tcp://{service}.lab.svc:{names.CONTROL_PORT}"
    assert config.advertise_host == "10.1.2.3"


def test_a_draft_is_told_what_it_reads() -> None:
    config = DraftConfig.from_env(env_of(children()["Deployment/lion-0-draft"]))
    assert (config.control_port, config.verdict_port, config.http_port) == (
        names.CONTROL_PORT,
        names.VERDICT_PORT,
        None,
    )
    assert config.api_key_file is not None
    assert (config.bind_host, config.http_host) == ("::", "::")


@pytest.mark.parametrize("role", ["stage", "draft"])
def test_what_a_pod_reads_is_mounted(role: str) -> None:
    pod = children()["Deployment/lion-0-draft" if role == "draft" else "Deployment/lion-0-stage-0"]
    (container,) = pod["spec"]["template"]["spec"]["containers"]
    mounts = [mount["mountPath"] for mount in container["volumeMounts"]]
    volumes = {volume["name"] for volume in pod["spec"]["template"]["spec"]["volumes"]}
    assert volumes == {mount["name"] for mount in container["volumeMounts"]}
    for variable, value in env_of(pod).items():
        if value.startswith("/") and variable != "HOME":
            assert any(value.startswith(mount) for mount in mounts), variable


@pytest.mark.parametrize("role", ["stage", "draft"])
def test_what_a_pod_reads_of_the_manifest_is_a_manifest(role: str) -> None:
    (config,) = (child for name, child in children().items() if name.startswith(f"ConfigMap/lion-{role}-"))
    read = parse_manifest(yaml.safe_load(config["data"]["manifest.yaml"]))
    whole = resource()
    assert read.spec.pipeline.spans == whole.spec.pipeline.spans
    assert read.spec.model.uri == whole.spec.model.uri
    assert read.spec.kv_slots(4096) == whole.spec.kv_slots(4096)
    assert read.served_name == whole.served_name


def restarted(**spec: Any) -> set[str]:
    """Components whose pods a change of the sample's spec restarts."""
    before, after = workloads(), workloads(**spec)
    return {
        name.removeprefix("Deployment/lion-0-")
        for name in before.keys() & after.keys()
        if before[name]["spec"]["template"] != after[name]["spec"]["template"]
    }


EVERYTHING = {"draft", "stage-0", "stage-1"}
PIPELINE = manifest()["spec"]["pipeline"]
SERVING = manifest()["spec"]["serving"]


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"model": {"uri": "hf://org/other"}}, EVERYTHING),
        ({"pipeline": PIPELINE | {"layers": ["0-4", "5-11"]}}, EVERYTHING),
        ({"speculation": {"policy": "pipedec"}}, {"draft"}),
        ({"draft": {"targetLayers": 3}}, {"draft"}),
        ({"serving": SERVING | {"maxContext": 512}}, EVERYTHING),
        ({"serving": SERVING | {"maxQueue": 7}}, {"draft"}),
        ({"serving": SERVING | {"service": {"type": "NodePort"}}}, set()),
        ({"images": {"stage": "other:1"}}, {"stage-0", "stage-1"}),
        ({"pipeline": PIPELINE | {"overrides": []}}, {"stage-1"}),
        ({"pipeline": PIPELINE | {"resources": {"limits": {"nvidia.com/gpu": 2}}}}, {"stage-0", "stage-1"}),
        ({"replicas": 3}, set()),
        ({"suspend": True}, set()),
        ({"progressDeadlineSeconds": 90}, set()),
        ({"networkPolicy": {"enabled": False}}, set()),
        ({"logging": {"level": "INFO", "stageLevel": "INFO", "format": "text"}}, set()),
        ({"logging": {"level": "DEBUG"}}, {"draft"}),
        ({"logging": {"stageLevel": "DEBUG"}}, {"stage-0", "stage-1"}),
        ({"logging": {"format": "json"}}, EVERYTHING),
    ],
    ids=lambda value: str(sorted(value)) if isinstance(value, dict) else "",
)
def test_a_change_restarts_what_reads_it(spec: dict[str, Any], expected: set[str]) -> None:
    assert restarted(**spec) == expected


def test_new_keys_restart_every_pod() -> None:
    before = workloads()
    for child in manifests.children(resource(), OWNER, SETTING, "ffffffffffff"):
        if child["kind"] == "Deployment":
            assert child["spec"]["template"] != before[f"Deployment/{child['metadata']['name']}"]["spec"]["template"]


def test_another_version_of_the_operator_restarts_nothing_by_itself() -> None:
    later = replace(SETTING, version="10.0.0")
    before, after = workloads(), children(later)
    assert all(after[name]["spec"]["template"] == child["spec"]["template"] for name, child in before.items())


@pytest.mark.parametrize("name", ["Deployment/lion-0-draft", "Deployment/lion-0-stage-1"])
def test_pods_satisfy_the_restricted_pod_security_standard(name: str) -> None:
    pod = children()[name]["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert all(volume.keys() - {"name"} <= ALLOWED_VOLUMES for volume in pod["volumes"])
    for container in pod["containers"]:
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


ALLOWED_VOLUMES = {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


def test_the_root_file_system_is_read_only_but_for_device_hooks() -> None:
    def read_only(**spec: Any) -> bool:
        (container,) = children(**spec)["Deployment/lion-0-stage-0"]["spec"]["template"]["spec"]["containers"]
        return bool(container["securityContext"]["readOnlyRootFilesystem"])

    assert read_only(pipeline={"stages": 2})
    assert not read_only()


def test_an_override_replaces_the_pipelines_field_whole() -> None:
    first, second = (children()[f"Deployment/lion-0-stage-{i}"]["spec"]["template"]["spec"] for i in (0, 1))
    assert (first["nodeSelector"], second["nodeSelector"]) == ({"gpu": "small"}, {"gpu": "big"})
    assert second["containers"][0]["resources"] == first["containers"][0]["resources"]


def test_a_variable_of_the_user_replaces_ours_that_is_not_reserved() -> None:
    env = [{"name": "HF_HOME", "value": "/elsewhere"}]
    pod = children(pipeline={"stages": 1, "env": env})["Deployment/lion-0-stage-0"]
    names_given = [each["name"] for each in pod["spec"]["template"]["spec"]["containers"][0]["env"]]
    assert len(names_given) == len(set(names_given))
    assert env_of(pod)["HF_HOME"] == "/elsewhere"


@pytest.mark.parametrize(("role", "name"), [("draft", "lion-0-draft"), ("pipeline", "lion-0-stage-1")])
def test_volumes_of_the_user_come_beside_ours(role: str, name: str) -> None:
    volume, mount = {"name": "ca", "configMap": {"name": "ca"}}, {"name": "ca", "mountPath": "/etc/ssl/certs"}
    given = {**manifest()["spec"][role], "volumes": [volume], "volumeMounts": [mount]}
    before, pod = (
        found[f"Deployment/{name}"]["spec"]["template"]["spec"] for found in (children(), children(**{role: given}))
    )
    assert pod["volumes"] == [*before["volumes"], volume]
    assert pod["containers"][0]["volumeMounts"] == [*before["containers"][0]["volumeMounts"], mount]


def test_a_claim_that_holds_the_model_and_the_cache_is_one_volume() -> None:
    shared: dict[str, Any] = {"model": {"uri": "pvc://models/large"}, "modelCache": {"claimName": "models"}}
    for name in ("lion-0-draft", "lion-0-stage-0"):
        pod = children(**shared)[f"Deployment/{name}"]["spec"]["template"]["spec"]
        sources = [each["persistentVolumeClaim"] for each in pod["volumes"] if "persistentVolumeClaim" in each]
        assert [each["claimName"] for each in sources].count("models") == 1
        mounts = pod["containers"][0]["volumeMounts"]
        assert {mount["name"] for mount in mounts} == {volume["name"] for volume in pod["volumes"]}
        assert {"name": "cache", "mountPath": "/var/cache/pipedec"} in mounts
        assert {"name": "cache", "mountPath": "/var/run/pipedec/claims/models", "readOnly": True} in mounts


def test_a_suspended_pipeline_has_no_pods_and_keeps_its_address() -> None:
    found = children(suspend=True)
    assert all(child["spec"]["replicas"] == 0 for child in found.values() if child["kind"] == "Deployment")
    assert "Service/lion" in found


def test_clients_can_be_limited() -> None:
    clients = [{"namespaceSelector": {"matchLabels": {"team": "blue"}}}]
    ingress = children(networkPolicy={"clients": clients})["NetworkPolicy/lion-draft"]["spec"]["ingress"]
    assert [rule["from"] for rule in ingress if rule["ports"][0]["port"] == 8000] == [clients]


def test_the_operator_may_ask_draft_pods_though_clients_are_limited() -> None:
    clients = [{"namespaceSelector": {"matchLabels": {"team": "blue"}}}]
    inside = replace(SETTING, namespace="pipedec")
    policy = children(inside, networkPolicy={"clients": clients})["NetworkPolicy/lion-draft"]
    *given, ours = policy["spec"]["ingress"][1]["from"]
    assert given == clients
    assert ours["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": "pipedec"}}
    chart = (ROOT / "charts" / "pipedec" / "templates" / "_helpers.tpl").read_text()
    assert all(f"{label}: {value}\n" in chart for label, value in ours["podSelector"]["matchLabels"].items())


def test_a_budget_holds_the_draft_pods_of_several_replicas_alone() -> None:
    (budget,) = (child for child in children(replicas=2).values() if child["kind"] == "PodDisruptionBudget")
    selector = budget["spec"]["selector"]["matchLabels"].items()
    held = {
        name.rpartition("-")[2]
        for name, child in workloads(replicas=2).items()
        if selector <= child["spec"]["template"]["metadata"]["labels"].items()
    }
    assert held == {"draft"}
    assert not any(child["kind"] == "PodDisruptionBudget" for child in children().values())


def test_a_cluster_without_optional_kinds_gets_none() -> None:
    bare = children(Setting("s:1", "d:1", "1"))
    assert {child["kind"] for child in bare.values()} == {kind.kind for kind in names.ALWAYS}


def test_every_name_of_the_longest_resource_fits() -> None:
    longest = manifest(replicas=2, pipeline={"stages": 2}, draft={"targetLayers": 1})
    longest["metadata"]["name"] = "n" * 40
    made = [
        child["metadata"]["name"] for child in manifests.children(parse_manifest(longest), OWNER, SETTING, KEYS_HASH)
    ]
    # A pod adds "-<10 of its ReplicaSet>-<5 of its own>" and is the host name, cut off at 63 without harm.
    assert all(len(name) <= 63 for name in (*made, names.workload("n" * 40, 63, 63)))


def test_pod_monitors_carry_the_labels_that_a_prometheus_selects_by() -> None:
    found = children(replace(SETTING, pod_monitor_labels={"release": "prometheus"}))["PodMonitor/lion"]
    assert found["metadata"]["labels"].items() > {"release": "prometheus", names.DEPLOYMENT: "lion"}.items()
    assert found["metadata"]["annotations"] != children()["PodMonitor/lion"]["metadata"]["annotations"]


def test_a_label_that_is_none_is_refused() -> None:
    with pytest.raises(PipeDecError, match="--pod-monitor-label release: give a KEY=VALUE"):
        main("example/stage:1", "example/draft:1", pod_monitor_label=["release"])
