"""The operator as a process, with kopf's watches, on a real API server behind a wire that a test can cut."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml
from kubernetes import client

from pipedec_operator import names
from tests.control_plane.live import Lab, eventually, names_of, pod_monitors
from tests.control_plane.samples import manifest

pytestmark = pytest.mark.e2e

EXPECTED = {"lion-0-draft", "lion-0-stage-0", "lion-0-stage-1"}


class Wire:
    """A TCP relay to the API server, whose connections can all be cut, and kept from coming back."""

    def __init__(self, host: str, port: int) -> None:
        self._target, self._up = (host, port), True
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._up = False
        for end in list(self._open):
            _hang_up(end)

    def mend(self) -> None:
        self._up = True

    def close(self) -> None:
        self.cut()
        _hang_up(self._listener)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if not self._up:
                near.close()
                continue
            far = socket.create_connection(self._target)
            self._open |= {near, far}
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, target), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                target.sendall(data)
        except OSError:
            pass  # cut
        finally:
            self._open -= {source, target}
            _hang_up(source)
            _hang_up(target)


def _hang_up(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # gone already
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    found = Wire(*_server(_kubeconfig()))
    yield found
    found.close()


def _kubeconfig() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(Path(os.environ["KUBECONFIG"]).read_text())
    return loaded


def _server(kubeconfig: dict[str, Any]) -> tuple[str, int]:
    address = urlsplit(kubeconfig["clusters"][0]["cluster"]["server"])
    return address.hostname or "", address.port or 443


class Process:
    """The operator, started as in its pod, but for some namespaces and through a wire."""

    def __init__(self, namespaces: list[str], wire: Wire, folder: Path, token: str = "") -> None:
        host, _ = _server(kubeconfig := _kubeconfig())
        if token:
            kubeconfig["users"][0]["user"] = {"token": token}
        cluster = kubeconfig["clusters"][0]["cluster"]
        cluster |= {"server": f"https://127.0.0.1:{wire.port}", "tls-server-name": host}
        (folder / "kubeconfig").write_text(yaml.safe_dump(kubeconfig))
        images = ("--stage-image=example.invalid/stage:1", "--draft-image=example.invalid/draft:1")
        where = (*(f"--namespace={each}" for each in namespaces), "--host=127.0.0.1", "--port=0", "--resync-seconds=5")
        self._command = (sys.executable, "-m", "pipedec_operator", *images, *where)
        self._environment = {**os.environ, "KUBECONFIG": str(folder / "kubeconfig")}
        self.log = folder / "operator.log"
        self.start()

    def start(self) -> None:
        with self.log.open("a") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log)

    def kill(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait(10)

    def end(self) -> int:
        """Wait until it ends by itself."""
        return self._process.wait(60)

    def terminate(self) -> int:
        self._process.terminate()
        return self._process.wait(30)


@pytest.fixture
def operator(lab: Lab, wire: Wire, tmp_path: Path) -> Iterator[Process]:
    found = Process([lab.namespace], wire, tmp_path)
    yield found
    found.kill()
    print(found.log.read_text())


def complete(lab: Lab) -> bool:
    return names_of(lab.list(names.WORKLOAD)) == EXPECTED


def start(lab: Lab) -> None:
    lab.write(manifest(pipeline={"stages": 2}))
    eventually(lambda: complete(lab) and "status" in (lab.resource() or {}))


def delete(lab: Lab, name: str) -> None:
    (child,) = (each for each in lab.list(names.WORKLOAD) if each["metadata"]["name"] == name)
    lab.api.delete(names.WORKLOAD, child)


def test_events_wake_it(lab: Lab, operator: Process) -> None:
    start(lab)
    delete(lab, "lion-0-stage-1")
    eventually(lambda: complete(lab))
    lab.write(manifest(pipeline={"stages": 1}))
    eventually(lambda: names_of(lab.list(names.WORKLOAD)) == EXPECTED - {"lion-0-stage-1"})
    resource = lab.resource()
    assert resource is not None
    assert "finalizers" not in resource["metadata"]
    assert operator.terminate() == 0


def test_what_happened_while_the_wire_was_cut_is_repaired(lab: Lab, wire: Wire, operator: Process) -> None:
    start(lab)
    wire.cut()
    delete(lab, "lion-0-stage-0")
    assert not complete(lab)
    wire.mend()
    eventually(lambda: complete(lab))


def test_what_happened_while_it_was_killed_is_repaired(lab: Lab, operator: Process) -> None:
    start(lab)
    before = {child["metadata"]["uid"] for child in lab.list(names.WORKLOAD)}
    operator.kill()
    delete(lab, "lion-0-draft")
    operator.start()
    eventually(lambda: complete(lab))
    assert len(before & {child["metadata"]["uid"] for child in lab.list(names.WORKLOAD)}) == 2


def test_a_secret_is_renewed_though_secrets_are_not_watched(lab: Lab, operator: Process) -> None:
    start(lab)
    (secret,) = lab.list(names.SECRET)
    lab.api.delete(names.SECRET, secret)
    eventually(
        lambda: [each["metadata"]["uid"] for each in lab.list(names.SECRET)] not in ([], [secret["metadata"]["uid"]])
    )


def test_a_kind_that_the_cluster_gets_and_loses_is_taken_up_and_let_go(lab: Lab, operator: Process) -> None:
    start(lab)
    with pod_monitors():
        eventually(lambda: names_of(lab.list(names.POD_MONITORS[0])) == {"lion"})
        (monitor,) = lab.list(names.POD_MONITORS[0])
        lab.api.delete(names.POD_MONITORS[0], monitor)  # not watched yet: repaired by the resync
        eventually(lambda: names_of(lab.list(names.POD_MONITORS[0])) == {"lion"})
    delete(lab, "lion-0-draft")
    eventually(lambda: complete(lab))


def test_a_namespace_without_its_role_costs_the_others_nothing(lab: Lab, wire: Wire, tmp_path: Path) -> None:
    other = Lab()
    account, path = {"kind": "ServiceAccount", "name": "operator", "namespace": lab.namespace}, "operator"
    lab.core.create_namespaced_service_account(lab.namespace, {"metadata": {"name": path}})
    spec = {"spec": {"audiences": None}}
    token = lab.core.create_namespaced_service_account_token(path, lab.namespace, spec).status.token
    rights = client.RbacAuthorizationV1Api()

    def grant(where: Lab) -> None:
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"}
        binding = {"metadata": {"name": "operator"}, "roleRef": role, "subjects": [account]}
        rights.create_namespaced_role_binding(where.namespace, binding)

    grant(lab)
    operator = Process([lab.namespace, other.namespace], wire, tmp_path, token)
    try:
        other.write(manifest(pipeline={"stages": 2}))
        start(lab)
        assert f"namespace {other.namespace} is not kept: " in operator.log.read_text()
        assert not other.list(names.WORKLOAD)
        grant(other)
        assert operator.end() == 1, "to be started anew, as a kubelet does"
        operator.start()
        eventually(lambda: complete(other))
        rights.delete_namespaced_role_binding("operator", lab.namespace)
        assert operator.end() == 1
        operator.start()
        eventually(lambda: f"namespace {lab.namespace} is not kept: " in operator.log.read_text())
        delete(other, "lion-0-stage-1")
        eventually(lambda: complete(other))
        assert operator.terminate() == 0
    finally:
        operator.kill()
        print(operator.log.read_text())
        other.close()
