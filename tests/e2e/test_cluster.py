"""The front door, on a real cluster: install, apply, wait, ask, break, change, delete. Run by `make e2e`.

One story in order, on one cluster: each test begins where the one before it ended.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from tests.e2e.kube import ROOT, Namespace, Object, eventually, install, model_cache, run

pytestmark = pytest.mark.e2e

PROMPT, TOKENS = "The capital of France is", 24
RELEASE = "front-door"
READY_SECONDS = 900

ASK = """
import json, sys, urllib.request
url, prompt, tokens = sys.argv[1:]
body = {"model": "smollm2", "prompt": prompt, "max_tokens": int(tokens), "temperature": 0}
request = urllib.request.Request(url + "/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
print(json.dumps(json.load(urllib.request.urlopen(request, timeout=300))["choices"][0]))
"""


@pytest.fixture(scope="module")
def space() -> Iterator[Namespace]:
    namespace = Namespace(f"pipedec-{uuid4().hex[:6]}")
    run("kubectl", "create", "namespace", namespace.name)
    yield namespace
    subprocess.run(["helm", "uninstall", RELEASE, "--namespace", namespace.name], check=False, capture_output=True)
    run("kubectl", "delete", "namespace", namespace.name, "--wait=false")
    run("kubectl", "delete", "pv", f"pipedec-e2e-{namespace.name}", "--ignore-not-found", "--wait=false")


@pytest.fixture(autouse=True)
def told(space: Namespace, request: pytest.FixtureRequest) -> Iterator[None]:
    """Prints the state of the namespace after a failure."""
    failed = request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        print(space.describe())


@pytest.fixture(scope="module")
def example(space: Namespace) -> Object:
    manifest: Object = yaml.safe_load((ROOT / "examples" / "smollm2.yaml").read_text())
    if cache := model_cache(space):
        manifest["spec"]["modelCache"] = cache
    return manifest


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The text that the same manifest gives as processes on this machine."""
    command = (sys.executable, "-m", "pipedec.cli", "generate", "--raw", "-f", str(ROOT / "examples" / "smollm2.yaml"))
    return run(*command, "--max-tokens", str(TOKENS), PROMPT, timeout=600)


def url(space: Namespace) -> str:
    return str(space.get("pdd", "smollm2")["status"]["url"])


def ask(space: Namespace) -> str:
    """A completion through the Service, from another pod."""
    answer = json.loads(space.python(f"client-{uuid4().hex[:6]}", ASK, url(space), PROMPT, str(TOKENS)))
    assert answer["finish_reason"] == "length"
    return str(answer["text"])


def pods(space: Namespace, name: str = "smollm2") -> dict[str, str]:
    """The uid of every pod of the pipeline, by its Deployment."""
    found = space.list("pods", f"pipedec.dev/deployment={name}")
    return {each["metadata"]["name"].rsplit("-", 2)[0]: each["metadata"]["uid"] for each in found}


def test_install(space: Namespace) -> None:
    install(RELEASE, space.name)
    space.wait(f"deployment/{RELEASE}-pipedec-operator", "condition=Available", 120)


def test_apply_and_wait(space: Namespace, example: Object) -> None:
    space.apply(example)
    space.wait("pdd/smollm2", "condition=Ready", READY_SECONDS)
    status = space.get("pdd", "smollm2")["status"]
    stages = example["spec"]["pipeline"]["stages"]
    assert status["readyStages"] == f"{stages}/{stages}"
    assert len(pods(space)) == stages + 1
    eventually(lambda: all("layers" in row for row in _stages(space)), 60, "the division of the layers")
    ends = [tuple(map(int, row["layers"].split("-"))) for row in _stages(space)]
    assert [start for start, _ in ends] == [0, *(end + 1 for _, end in ends[:-1])]


def _stages(space: Namespace) -> list[Object]:
    found: list[Object] = space.get("pdd", "smollm2")["status"]["stages"]
    return found


def test_a_completion_is_the_same_as_on_one_machine(space: Namespace, expected: str) -> None:
    assert ask(space).strip() == expected.strip()


def test_helm_test(space: Namespace) -> None:
    run("helm", "test", RELEASE, "--namespace", space.name, "--timeout=3m", timeout=240)


def test_an_upgrade_of_the_operator_leaves_every_pod_alone_and_takes_its_rights_away(space: Namespace) -> None:
    """From here on the operator keeps this namespace alone, with a Role and nothing of the cluster's."""
    before, operator = pods(space), _operators(space)
    install(RELEASE, space.name, f"watchNamespaces={{{space.name}}}", "rbac.aggregate=false", "logLevel=DEBUG")
    eventually(lambda: len(_operators(space)) == 1 and not _operators(space) & operator, 60, "another operator")
    for kind in ("clusterroles", "clusterrolebindings"):
        assert space.list(kind, f"app.kubernetes.io/instance={RELEASE}") == []
    assert len(space.list("roles", f"app.kubernetes.io/instance={RELEASE}")) == 1
    account = f"system:serviceaccount:{space.name}:{RELEASE}-pipedec-operator"
    for right in (("list", "secrets"), ("get", "pods"), ("create", "pods"), ("list", "pdd", "--all-namespaces")):
        asked = subprocess.run(
            ["kubectl", "-n", space.name, "auth", "can-i", *right, "--as", account],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert asked.stdout.strip() == "no", right
    assert pods(space) == before


def _operators(space: Namespace) -> set[str]:
    found = space.list("pods", f"app.kubernetes.io/instance={RELEASE},pod-template-hash")  # not the pod of `helm test`
    return {each["metadata"]["uid"] for each in found}


def test_a_stage_that_dies_comes_back_and_the_others_stay(space: Namespace, expected: str) -> None:
    before = pods(space)
    (stage,) = space.list("pods", "pipedec.dev/deployment=smollm2,pipedec.dev/stage-index=1")
    space.kubectl("delete", "pod", stage["metadata"]["name"], "--grace-period=0", "--force")
    eventually(
        lambda: pods(space).get("smollm2-0-stage-1") not in (None, before["smollm2-0-stage-1"]), 120, "a new pod"
    )
    space.wait("pdd/smollm2", "condition=Ready", READY_SECONDS)
    eventually(lambda: space.get("pdd", "smollm2")["status"]["stages"][1]["ready"], READY_SECONDS, "the stage")
    after = pods(space)
    assert {name for name in before if before[name] != after[name]} == {"smollm2-0-stage-1"}
    assert ask(space).strip() == expected.strip()


def test_a_child_that_is_deleted_comes_back(space: Namespace) -> None:
    for kind, name in (
        ("service", "smollm2"),
        ("networkpolicy", "smollm2-stage"),
        ("serviceaccount", "smollm2-pipedec"),
    ):
        uid = space.get(kind, name)["metadata"]["uid"]
        space.kubectl("delete", kind, name)
        eventually(lambda kind=kind, name=name, uid=uid: _is_new(space, kind, name, uid), 60, f"another {kind} {name}")


def _is_new(space: Namespace, kind: str, name: str, uid: str) -> bool:
    return any(each["metadata"]["name"] == name and each["metadata"]["uid"] != uid for each in space.list(kind))


def test_another_policy_replaces_the_draft_pod_alone(space: Namespace, example: Object, expected: str) -> None:
    before = pods(space)
    example["spec"]["speculation"] = {"policy": "pipedec"}
    space.apply(example)
    eventually(
        lambda: pods(space).get("smollm2-0-draft") not in (None, before["smollm2-0-draft"]), 180, "a new draft pod"
    )
    space.wait("pdd/smollm2", "condition=Ready", READY_SECONDS)
    after = pods(space)
    assert {name for name in before if before[name] != after[name]} == {"smollm2-0-draft"}
    assert ask(space).strip() == expected.strip()


def test_keys_are_rotated_when_asked_for(space: Namespace, expected: str) -> None:
    before = pods(space)
    space.kubectl("annotate", "pdd", "smollm2", "pipedec.dev/rotate-keys=now")
    eventually(lambda: _replaced(pods(space), before), 300, "every pod to be replaced")
    space.wait("pdd/smollm2", "condition=Ready", READY_SECONDS)
    assert ask(space).strip() == expected.strip()


def _replaced(now: dict[str, str], before: dict[str, str]) -> bool:
    return now.keys() == before.keys() and not {*now.values()} & {*before.values()}


def test_an_operator_that_dies_changes_nothing(space: Namespace) -> None:
    before = pods(space)
    space.kubectl("delete", "pod", "-l", f"app.kubernetes.io/instance={RELEASE},app.kubernetes.io/component=operator")
    space.wait(f"deployment/{RELEASE}-pipedec-operator", "condition=Available", 120)
    assert pods(space) == before


def test_no_request_fails_while_pipelines_are_replaced_and_scaled_in(space: Namespace, example: Object) -> None:
    spec = example["spec"] | {"replicas": 2, "pipeline": {"stages": 2}}
    pair = {**example, "metadata": {"name": "pair"}, "spec": spec}
    space.apply(pair)
    space.wait("pdd/pair", "condition=Ready", READY_SECONDS)
    before = pods(space, "pair")
    with space.load("load", str(space.get("pdd", "pair")["status"]["url"]), "pair", PROMPT, "4", "4") as told:
        spec["serving"] = example["spec"].get("serving", {}) | {"maxContext": 1024}  # all pods read it
        space.apply(pair)
        eventually(lambda: _replaced(pods(space, "pair"), before), READY_SECONDS, "every pod to be replaced")
        space.wait("pdd/pair", "condition=Ready", READY_SECONDS)
        space.kubectl("scale", "pdd/pair", "--replicas=1")
        eventually(lambda: {name[:6] for name in pods(space, "pair")} == {"pair-0"}, 180, "one pipeline")
    assert told["failures"] == []
    assert len(told["texts"]) == 1
    assert told["answers"] > 8
    space.kubectl("delete", "pdd", "pair", "--timeout=60s")


def test_a_model_that_is_missing_is_named(space: Namespace, example: Object, tmp_path: Path) -> None:
    missing = {**example, "metadata": {"name": "missing"}}
    missing["spec"] = {**example["spec"], "model": {"uri": "file:///no/such/model"}, "pipeline": {"stages": 1}}
    space.apply(missing)
    reasons = {"ModelNotFound"}
    eventually(lambda: _ready_reason(space, "missing") in reasons, 240, "the reason ModelNotFound")
    space.kubectl("delete", "pdd", "missing")


def test_a_secret_that_is_missing_is_named_until_it_is_there(space: Namespace, example: Object) -> None:
    locked = {**example, "metadata": {"name": "locked"}}
    serving = example["spec"].get("serving", {}) | {"apiKeySecretRef": {"name": "later", "key": "api"}}
    locked["spec"] = {**example["spec"], "serving": serving, "pipeline": {"stages": 1}}
    space.apply(locked)
    eventually(lambda: _ready_reason(space, "locked") == "ContainerConfigError", 120, "the reason")
    assert "Secret later is missing; create it with the key api" in _draft(space, "locked")["message"]
    space.kubectl("create", "secret", "generic", "later", "--from-literal=api=a-key")
    eventually(lambda: _draft(space, "locked").get("reason") != "ContainerConfigError", 120, "the status to follow")
    space.kubectl("delete", "pdd", "locked")


def _draft(space: Namespace, name: str) -> Object:
    found: Object = space.get("pdd", name)["status"]["drafts"][0]
    return found


def _ready_reason(space: Namespace, name: str) -> str:
    conditions = space.get("pdd", name).get("status", {}).get("conditions", [])
    return next((each["reason"] for each in conditions if each["type"] == "Ready"), "")


def test_suspend_removes_the_pods(space: Namespace) -> None:
    space.kubectl("patch", "pdd", "smollm2", "--type=merge", "-p", '{"spec": {"suspend": true}}')
    space.wait("pdd/smollm2", "condition=Suspended", 180)
    assert pods(space) == {}


def test_delete_works_while_the_operator_is_down(space: Namespace) -> None:
    space.kubectl("scale", f"deployment/{RELEASE}-pipedec-operator", "--replicas=0")
    space.kubectl("delete", "pdd", "smollm2", "--timeout=60s")
    ours = "pipedec.dev/deployment=smollm2"
    kinds = "deployments,pods,services,configmaps,secrets,serviceaccounts,networkpolicies,poddisruptionbudgets"
    eventually(lambda: space.list(kinds, ours) == [], 120, "the garbage collector")


def test_uninstall(space: Namespace) -> None:
    run("helm", "uninstall", RELEASE, "--namespace", space.name, "--wait", timeout=180)
    assert space.list("deployments") == []
