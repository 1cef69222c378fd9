"""The chart as helm renders it. Needs helm, so it is one of the tests that run beside a cluster."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipedec_operator.names import Object
from tests.observability.scraping import OPERATOR_ENDPOINT

pytestmark = pytest.mark.e2e

CHART = Path(__file__).parents[2] / "charts" / "pipedec"


def helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["helm", *arguments], capture_output=True, text=True, check=False)


def render(*values: str, release: str = "release", namespace: str = "home", chart: Path = CHART) -> list[Object]:
    settings = [argument for value in values for argument in ("--set", value)]
    result = helm("template", release, str(chart), "--namespace", namespace, *settings)
    assert result.returncode == 0, result.stderr
    return [each for each in yaml.load_all(result.stdout, Strict) if each]


class Strict(yaml.SafeLoader):
    """Refuses a key that is given twice, as the API server does."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        assert len(set(keys)) == len(keys), keys
        return super().construct_mapping(node, deep)


def of_kind(objects: Iterable[Object], kind: str) -> list[Object]:
    return [each for each in objects if each["kind"] == kind]


def test_lint() -> None:
    result = helm("lint", "--strict", str(CHART))
    assert result.returncode == 0, result.stdout


def test_by_default_it_keeps_the_whole_cluster() -> None:
    objects = render()
    (deployment,) = of_kind(objects, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "pipedec/operator:0.1.0"
    assert not any(argument.startswith("--namespace") for argument in container["args"])
    assert len(of_kind(objects, "ClusterRoleBinding")) == 1
    assert of_kind(objects, "Role") == []
    for kind in ("PodMonitor", "PrometheusRule", "ConfigMap"):
        assert of_kind(objects, kind) == []


def test_with_namespaces_it_has_no_cluster_role() -> None:
    objects = render("watchNamespaces={a,b}", "rbac.aggregate=false")
    assert [role["metadata"]["namespace"] for role in of_kind(objects, "Role")] == ["a", "b"]
    assert {each["subjects"][0]["namespace"] for each in of_kind(objects, "RoleBinding")} == {"home"}
    assert of_kind(objects, "ClusterRole") == []
    (deployment,) = of_kind(objects, "Deployment")
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert [each for each in arguments if each.startswith("--namespace")] == ["--namespace=a", "--namespace=b"]


def test_users_roles_include_the_resource() -> None:
    roles = {
        label: role
        for role in of_kind(render(), "ClusterRole")
        for label in role["metadata"]["labels"]
        if "aggregate-to" in label
    }
    assert {label.rpartition("-")[2] for label in roles} == {"view", "edit", "admin"}
    view = roles["rbac.authorization.k8s.io/aggregate-to-view"]["rules"][0]
    assert view["verbs"] == ["get", "list", "watch"]
    # `kubectl scale --current-replicas` reads first, and an edit role has what a view role has.
    assert {f"pipedecdeployments{each}" for each in ("", "/scale", "/status")} == set(view["resources"])


@pytest.mark.parametrize(
    ("value", "kind"),
    [("podMonitor", "PodMonitor"), ("prometheusRule", "PrometheusRule"), ("dashboards", "ConfigMap")],
)
def test_each_part_of_monitoring_is_there_when_asked_for(value: str, kind: str) -> None:
    objects = render(f"metrics.{value}.enabled=true")
    found = {each["kind"] for each in objects} & {"PodMonitor", "PrometheusRule", "ConfigMap"}
    assert found == {kind}


def test_the_dashboards_reach_grafanas_sidecar_unchanged() -> None:
    (found,) = of_kind(render("metrics.dashboards.enabled=true", "metrics.dashboards.labels.team=llm"), "ConfigMap")
    labels = found["metadata"]["labels"]
    assert (labels["grafana_dashboard"], labels["team"]) == ("1", "llm")
    assert found["data"] == {path.name: path.read_text() for path in (CHART / "dashboards").iterdir()}


def test_the_rules_are_all_there_and_say_where_to_look() -> None:
    url = "https://wiki.example/pipedec"
    (found,) = of_kind(
        render("metrics.prometheusRule.enabled=true", f"metrics.prometheusRule.runbookUrl={url}"), "PrometheusRule"
    )
    expected = yaml.safe_load((CHART / "rules" / "pipedec.yaml").read_text().replace("docs/runbook.md", url))
    assert found["spec"] == expected


@pytest.mark.parametrize("url", ["*wiki", "&x", "{{ x }}", "https://wiki/?a=$1&b=%s"])
def test_any_address_of_the_runbook_is_taken_as_it_is(url: str) -> None:
    literal = url.replace("{", r"\{").replace("}", r"\}").replace(" ", "")
    (found,) = of_kind(
        render("metrics.prometheusRule.enabled=true", f"metrics.prometheusRule.runbookUrl={literal}"), "PrometheusRule"
    )
    urls = [rule["annotations"]["runbook_url"] for group in found["spec"]["groups"] for rule in group["rules"]]
    assert urls
    assert all(each.startswith(url.replace(" ", "") + "#pipedec") for each in urls)


def test_values_of_a_release_before_the_runbooks_address_do_for_the_rules() -> None:
    """As `helm upgrade --reuse-values` gives them."""
    (found,) = of_kind(
        render("metrics.prometheusRule.enabled=true", "metrics.prometheusRule.runbookUrl=null"), "PrometheusRule"
    )
    assert found["spec"] == yaml.safe_load((CHART / "rules" / "pipedec.yaml").read_text())


def test_rules_that_cannot_be_read_are_an_error_and_not_no_rules(tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "pipedec")
    (chart / "rules" / "pipedec.yaml").write_text("groups: [*nothing]")
    result = helm("template", str(chart), "--set", "metrics.prometheusRule.enabled=true")
    assert result.returncode != 0
    assert "rules/pipedec.yaml: " in result.stderr


def test_it_may_be_a_part_of_another_chart_and_left_out_there(tmp_path: Path) -> None:
    shutil.copytree(CHART, tmp_path / "charts" / "pipedec")
    parts = [{"name": "pipedec", "version": "0.1.0", "condition": "pipedec.enabled"}]
    whole = {"apiVersion": "v2", "name": "whole", "version": "1.0.0", "dependencies": parts}
    (tmp_path / "Chart.yaml").write_text(yaml.safe_dump(whole))
    assert of_kind(render("pipedec.enabled=true", chart=tmp_path), "Deployment")
    assert of_kind(render("pipedec.enabled=false", chart=tmp_path), "Deployment") == []


EVERYTHING = [f"metrics.{part}.enabled=true" for part in ("podMonitor", "prometheusRule", "dashboards")]


@pytest.mark.parametrize(
    ("release", "namespace", "values"),
    [
        ("7", "100", []),
        ("7", "100", ["watchNamespaces[0]=200"]),
        ("true", "null", ["fullnameOverride=1e3", "serviceAccount.name=7e2", "priorityClassName=0x1"]),
    ],
)
def test_names_that_look_like_numbers_stay_names(release: str, namespace: str, values: list[str]) -> None:
    strings = [argument for value in values for argument in ("--set-string", value)]
    settings = [argument for value in EVERYTHING for argument in ("--set", value)]
    result = helm("template", release, str(CHART), "--namespace", namespace, *strings, *settings)
    assert result.returncode == 0, result.stderr
    objects = [each for each in yaml.load_all(result.stdout, Strict) if each]
    assert of_kind(objects, "PrometheusRule")
    for each in objects:
        metadata = each["metadata"]
        names = [metadata["name"], metadata.get("namespace", ""), *metadata["labels"].values()]
        names += [name for subject in each.get("subjects", ()) for name in subject.values()]
        assert all(isinstance(name, str) for name in names), names
    (deployment,) = of_kind(objects, "Deployment")
    pod = deployment["spec"]["template"]["spec"]
    assert isinstance(pod["serviceAccountName"], str)
    assert isinstance(pod.get("priorityClassName", ""), str)


@pytest.mark.parametrize("length", [54, 55, 63, 80])
def test_a_long_name_still_makes_labels(length: int) -> None:
    for each in render(f"nameOverride={'n' * length}"):
        assert all(len(value) <= 63 for value in each["metadata"]["labels"].values())


def test_a_version_with_a_build_still_makes_labels(tmp_path: Path) -> None:
    chart = shutil.copytree(CHART, tmp_path / "pipedec")
    about = (chart / "Chart.yaml").read_text()
    (chart / "Chart.yaml").write_text(about.replace("ersion: 0.1.0", f"ersion: 0.1.0+{'a1b2c3.' * 9}d4"))
    for each in render("metrics.podMonitor.enabled=true", chart=chart):
        for value in each["metadata"]["labels"].values():
            assert re.fullmatch(r"[a-zA-Z0-9]([-._a-zA-Z0-9]{0,61}[a-zA-Z0-9])?", value), value


def test_the_test_goes_where_the_operator_goes() -> None:
    values = [
        "resources.limits.memory=1Gi",
        "nodeSelector.disk=ssd",
        "tolerations[0].key=gpu",
        "affinity.nodeAffinity.x=y",
    ]
    objects = render(*values)
    (deployment,), (pod,) = of_kind(objects, "Deployment"), of_kind(objects, "Pod")
    operator = deployment["spec"]["template"]["spec"]
    for part in ("nodeSelector", "tolerations", "affinity"):
        assert pod["spec"][part] == operator[part]
    assert pod["spec"]["containers"][0]["resources"] == operator["containers"][0]["resources"]


def test_an_alert_can_be_left_out() -> None:
    (found,) = of_kind(
        render("metrics.prometheusRule.enabled=true", "metrics.prometheusRule.disabled={PipeDecHighTTFT}"),
        "PrometheusRule",
    )
    names = {rule["alert"] for group in found["spec"]["groups"] for rule in group["rules"]}
    assert "PipeDecHighTTFT" not in names
    assert "PipeDecNotFormed" in names


def test_the_operator_is_scraped_as_the_dashboards_expect() -> None:
    (found,) = of_kind(render("metrics.podMonitor.enabled=true", "metrics.podMonitor.interval=10s"), "PodMonitor")
    assert found["spec"]["podMetricsEndpoints"] == [{**OPERATOR_ENDPOINT, "interval": "10s"}]
    (deployment,) = of_kind(render(), "Deployment")
    template = deployment["spec"]["template"]
    assert found["spec"]["selector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
    assert OPERATOR_ENDPOINT["port"] in [port["name"] for port in template["spec"]["containers"][0]["ports"]]


def test_pipelines_are_scraped_by_the_same_prometheus() -> None:
    labels = "metrics.podMonitor.labels.release=prometheus"
    (deployment,) = of_kind(render(labels), "Deployment")
    assert "--pod-monitor-label=release=prometheus" in deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    (monitor,) = of_kind(render(labels, "metrics.podMonitor.enabled=true"), "PodMonitor")
    assert monitor["metadata"]["labels"]["release"] == "prometheus"


def test_a_digest_goes_before_a_tag() -> None:
    digest = "sha256:" + "0" * 64
    (deployment,) = of_kind(render("image.tag=x", f"image.digest={digest}"), "Deployment")
    assert deployment["spec"]["template"]["spec"]["containers"][0]["image"] == f"pipedec/operator@{digest}"


def test_pods_are_hardened() -> None:
    objects = render()
    for spec in (of_kind(objects, "Deployment")[0]["spec"]["template"]["spec"], of_kind(objects, "Pod")[0]["spec"]):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in spec["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_test_asks_the_pipeline_that_is_named() -> None:
    (pod,) = of_kind(render("test.deployment=lion"), "Pod")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    assert pod["spec"]["containers"][0]["args"] == ["--namespace=home", "--name=lion"]


@pytest.mark.parametrize(
    ("values", "namespace"),
    [
        ((), "home"),
        (("watchNamespaces={a,b}",), "a"),
        (("watchNamespaces={a,b}", "test.namespace=b"), "b"),
    ],
)
def test_the_test_asks_a_pipeline_that_the_operator_keeps(values: tuple[str, ...], namespace: str) -> None:
    (pod,) = of_kind(render(*values), "Pod")
    assert pod["spec"]["containers"][0]["args"] == [f"--namespace={namespace}"]
    assert pod["metadata"]["namespace"] == "home"


def test_two_releases_of_one_name_do_not_share_cluster_roles() -> None:
    def roles(namespace: str) -> set[str]:
        result = helm("template", "release", str(CHART), "--namespace", namespace, "--set", "watchNamespaces={a}")
        objects = [each for each in yaml.safe_load_all(result.stdout) if each]
        return {each["metadata"]["name"] for each in of_kind(objects, "ClusterRole")}

    assert roles("home")
    assert not roles("home") & roles("away")


@pytest.mark.parametrize(
    "value",
    [
        "imagee.tag=1",
        "workers=0",
        "logLevel=LOUD",
        "watchNamespaces=a",
        "image.digest=latest",
        "rbac.create=maybe",
        "metrics.prometheusRule.disabled={Down}",
        "enabled=maybe",
        *(
            rf"{labels}.{label}=x"
            for labels in ("podLabels", "metrics.podMonitor.labels", "metrics.prometheusRule.labels")
            for label in (r"app\.kubernetes\.io/part-of", r"pipedec\.dev/deployment")
        ),
    ],
)
def test_a_wrong_value_is_refused(value: str) -> None:
    result = helm("template", str(CHART), "--set", value)
    assert result.returncode != 0
    assert value.split("=")[0].split(".")[0] in result.stderr
