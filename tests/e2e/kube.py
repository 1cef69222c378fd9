"""kubectl and helm for the end-to-end test: what a person would type, and what they would wait for."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
IMAGES = {
    role: os.environ.get(f"PIPEDEC_E2E_{role.upper()}_IMAGE", f"localhost/pipedec-{role}:e2e")
    for role in ("operator", "stage", "draft")
}
MODEL_CACHE = os.environ.get("PIPEDEC_E2E_MODEL_CACHE", "")  # a folder on the node; empty: pods fetch the model

Object = dict[str, Any]


def run(*command: str, stdin: str = "", timeout: float = 120) -> str:
    """A command's output. Raises `AssertionError` with what it complained about."""
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


class Namespace:
    """One namespace of the cluster."""

    def __init__(self, name: str) -> None:
        self.name = name

    def kubectl(self, *arguments: str, stdin: str = "", timeout: float = 120) -> str:
        return run("kubectl", "--namespace", self.name, *arguments, stdin=stdin, timeout=timeout)

    def apply(self, *objects: Object) -> None:
        # A server before 1.25 does not know a CRD's CEL rules, which kubectl's own validation would stumble over.
        self.kubectl("apply", "--validate=false", "-f", "-", stdin=yaml.safe_dump_all(objects))

    def get(self, kind: str, name: str) -> Object:
        found: Object = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def list(self, kind: str, selector: str = "") -> list[Object]:
        found: list[Object] = json.loads(self.kubectl("get", kind, "-l", selector, "-o", "json"))["items"]
        return found

    def wait(self, what: str, condition: str, seconds: int) -> None:
        self.kubectl("wait", f"--for={condition}", f"--timeout={seconds}s", what, timeout=seconds + 30)

    def python(self, name: str, program: str, *arguments: str, seconds: int = 180) -> str:
        """Runs a program in a pod of its own, as any other pod of the cluster would, and gives its output."""
        self.apply(client_pod(name, program, arguments))
        return self.output(name, seconds)

    @contextmanager
    def load(self, name: str, url: str, model: str, *arguments: str) -> Iterator[Object]:
        """Keeps clients busy meanwhile; gives what `load.py` prints, which is there afterwards."""
        told: Object = {}
        self.apply(client_pod(name, (Path(__file__).parent / "load.py").read_text(), (url, model, *arguments)))
        self.wait(f"pod/{name}", "condition=Ready", 120)
        yield told
        self.kubectl("exec", name, "--", "touch", "/tmp/stop")
        told |= json.loads(self.output(name, 180))

    def output(self, name: str, seconds: float) -> str:
        """What the pod of a program has printed once it has ended. Raises `AssertionError` with it if it failed."""
        eventually(lambda: self._phase(name) in ("Succeeded", "Failed"), seconds, f"pod {name} to end")
        output = self.kubectl("logs", name)
        phase = self._phase(name)
        self.kubectl("delete", "pod", name, "--wait=false")
        assert phase == "Succeeded", output
        return output

    def _phase(self, pod: str) -> str:
        return str(self.get("pod", pod)["status"].get("phase"))

    def describe(self) -> str:
        """What a person would look at if this went wrong."""
        commands = (("get", "pdd,deploy,pods,svc,cm,pvc", "-o", "wide"), ("describe", "pdd"), ("get", "events"))
        told = [subprocess.run(["kubectl", "-n", self.name, *c], capture_output=True, text=True, check=False).stdout
                for c in commands]  # fmt: skip
        for pod in self.list("pods"):
            name = pod["metadata"]["name"]
            logs = subprocess.run(
                ["kubectl", "-n", self.name, "logs", "--tail=25", name], capture_output=True, text=True, check=False
            )
            told.append(f"--- {name}\n{logs.stdout}{logs.stderr}")
        return "\n".join(told)


def client_pod(name: str, program: str, arguments: tuple[str, ...]) -> Object:
    """A pod that satisfies the restricted Pod Security Standard, has Python, and may ask the API server nothing."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [
                {
                    "name": "client",
                    "image": IMAGES["operator"],
                    "command": ["python", "-c", program, *arguments],
                    "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
                }
            ],
        },
    }


def eventually(holds: Callable[[], bool], seconds: float, what: str) -> None:
    """Waits for a cluster to come to a state. Raises `AssertionError` naming it if it does not."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"waited {seconds:.0f} seconds for {what}"
        time.sleep(0.5)


def install(release: str, namespace: str, *values: str) -> None:
    """Installs or upgrades the chart, with the images under test and further values."""
    arguments = ["--install", "--namespace", namespace, "--wait", "--timeout=2m"]
    arguments += [argument for value in values for argument in ("--set", value)]
    for key, role in (("image", "operator"), ("stageImage", "stage"), ("draftImage", "draft")):
        repository, _, tag = IMAGES[role].rpartition(":")
        arguments += ["--set", f"{key}.repository={repository}", "--set-string", f"{key}.tag={tag}"]
    if run("helm", "version", "--short").startswith("v4"):
        arguments.append("--server-side=false")  # for servers before 1.25: see Namespace.apply
    run("helm", "upgrade", release, str(ROOT / "charts" / "pipedec"), *arguments, timeout=400)


def model_cache(namespace: Namespace) -> Object:
    """spec.modelCache for the pods; with a folder on the node, a claim on it is made."""
    if not MODEL_CACHE:
        return {}
    volume = f"pipedec-e2e-{namespace.name}"
    common = {"accessModes": ["ReadWriteMany"], "storageClassName": "", "volumeName": volume}
    namespace.apply(
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": volume},
            "spec": {
                "accessModes": ["ReadWriteMany"],
                "capacity": {"storage": "10Gi"},
                "hostPath": {"path": MODEL_CACHE},
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {"namespace": namespace.name, "name": "models"},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": "models"},
            "spec": {**common, "resources": {"requests": {"storage": "10Gi"}}},
        },
    )
    return {"claimName": "models"}
