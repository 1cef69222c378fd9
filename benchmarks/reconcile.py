"""How the operator does with many resources: `python -m benchmarks.reconcile --count 100 --stages 8 --json`.

Needs a Kubernetes API server in KUBECONFIG and nothing else: no node, no controller. The operator runs as a process of
its own, as in its pod; its calls are counted by its own metrics, its memory by the kernel. Everything is made in a
namespace of its own, and deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
from kubernetes import client, config
from prometheus_client.parser import text_string_to_metric_families

from pipedec_operator import names
from pipedec_operator.cluster import ApiServer, connect

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})


class Operator:
    """The operator as a process, and what it says of itself."""

    def __init__(self, namespace: str, resync_seconds: float) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        images = ("--stage-image=example.invalid/stage:1", "--draft-image=example.invalid/draft:1")
        where = (f"--namespace={namespace}", "--host=127.0.0.1", f"--port={self._port}", "--log-level=WARNING")
        command = (sys.executable, "-m", "pipedec_operator", *images, *where, f"--resync-seconds={resync_seconds}")
        self._process = subprocess.Popen(command)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def calls(self) -> dict[str, int]:
        """Calls of the API server so far, by verb."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/metrics", timeout=10) as response:
                text = response.read().decode()
        except OSError:
            return {}
        found: dict[str, int] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name == "pipedec_operator_api_calls_total":
                    verb = sample.labels["verb"]
                    found[verb] = found.get(verb, 0) + int(sample.value)
        return found

    def peak_megabytes(self) -> float:
        """The most memory that was resident at one time."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 1024

    def cpu_seconds(self) -> float:
        times = psutil.Process(self._process.pid).cpu_times()
        return float(times.user + times.system)


def measure(count: int, stages: int, idle_seconds: float, deletions: int) -> dict[str, Any]:
    """Everything, in one run."""
    with _namespace() as (api, namespace):
        manifests = [_manifest(f"pipeline-{index}", namespace, stages) for index in range(count)]
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda manifest: api.create(names.RESOURCE, manifest), manifests))
        operator = Operator(namespace, resync_seconds=300)
        try:
            return _measure(operator, api, namespace, count * (stages + 1), count, idle_seconds, deletions)
        finally:
            operator.close()


def _measure(
    operator: Operator, api: ApiServer, namespace: str, workloads: int, count: int, idle_seconds: float, deletions: int
) -> dict[str, Any]:
    began = time.monotonic()
    _until(lambda: len(_workloads(api, namespace)) == workloads, 900)
    made = time.monotonic() - began
    _until(lambda: _quiet(operator), 300)
    created = operator.calls()
    time.sleep(idle_seconds)
    idle = {verb: calls - created.get(verb, 0) for verb, calls in operator.calls().items()}
    victims = _workloads(api, namespace)[:: max(1, workloads // deletions)][:deletions]
    gone = {victim["metadata"]["uid"] for victim in victims}
    began = time.monotonic()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda victim: api.delete(names.WORKLOAD, victim), victims))
    _until(lambda: _repaired(api, namespace, workloads, gone), 300)
    return {
        "resources": count,
        "deployments": workloads,
        "seconds_to_create": round(made, 1),
        "api_calls_per_resource": round(sum(created.values()) / count, 1),
        "writes_per_resource": round(sum(calls for verb, calls in created.items() if verb in WRITES) / count, 1),
        "idle_reads_per_minute": round(idle.get("GET", 0) * 60 / idle_seconds, 1),
        "idle_writes": sum(calls for verb, calls in idle.items() if verb in WRITES),
        "deleted": len(victims),
        "seconds_to_repair": round(time.monotonic() - began, 1),
        "operator_peak_megabytes": round(operator.peak_megabytes(), 1),
        "operator_cpu_seconds": round(operator.cpu_seconds(), 1),
    }


def _manifest(name: str, namespace: str, stages: int) -> names.Object:
    return {
        "apiVersion": names.RESOURCE.api_version,
        "kind": names.KIND,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"model": {"uri": "hf://org/large"}, "draft": {"targetLayers": 4}, "pipeline": {"stages": stages}},
    }


def _workloads(api: ApiServer, namespace: str) -> list[names.Object]:
    return api.list(names.WORKLOAD, namespace, {names.MANAGED_BY: names.MANAGER})


def _repaired(api: ApiServer, namespace: str, workloads: int, gone: set[str]) -> bool:
    found = {each["metadata"]["uid"] for each in _workloads(api, namespace)}
    return len(found) == workloads and not found & gone


def _quiet(operator: Operator) -> bool:
    """Whether three seconds pass without a call."""
    before = operator.calls()
    time.sleep(3)
    return operator.calls() == before != {}


def _until(holds: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:.0f} seconds")
        time.sleep(0.5)


@contextmanager
def _namespace() -> Iterator[tuple[ApiServer, str]]:
    config.load_kube_config()
    core, api, name = client.CoreV1Api(), connect(), f"bench-{uuid4().hex[:8]}"
    core.create_namespace({"metadata": {"name": name}})
    try:
        yield api, name
    finally:
        kinds = (names.RESOURCE, *names.ALWAYS, *names.DISRUPTION_BUDGETS[-1:], names.SECRET)
        with ThreadPoolExecutor(8) as pool:  # there may be no garbage collector
            for kind in kinds:
                list(pool.map(lambda child, kind=kind: api.delete(kind, child), api.list(kind, name, {})))
        core.delete_namespace(name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100, help="resources")
    parser.add_argument("--stages", type=int, default=8, help="stages of each")
    parser.add_argument("--idle-seconds", type=float, default=60, help="how long nothing happens")
    parser.add_argument("--deletions", type=int, default=100, help="Deployments deleted, and waited for")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    result = measure(arguments.count, arguments.stages, arguments.idle_seconds, arguments.deletions)
    if arguments.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name.replace('_', ' '):28} {value}")


if __name__ == "__main__":
    main()
