"""A pipeline under load and an operator at work, scraped by a real Prometheus with the chart's rules."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from benchmarks.up import Up, running
from observability.__main__ import CHART
from pipedec.cli.ports import LOOPBACK
from pipedec_operator.names import Object
from tests.observability import prometheus
from tests.observability.keeping import keeping
from tests.observability.prometheus import Prometheus, program
from tests.observability.scraping import NAMESPACE, operator_config, pipeline_config
from tests.tiny import tiny_model

STAGES = 2
CLIENTS = 4  # twice as many as the pipeline takes, so that some wait


def manifest(model: Path) -> Object:
    return {
        "apiVersion": "pipedec.dev/v1alpha1",
        "kind": "PipeDecDeployment",
        "metadata": {"name": "tiny", "namespace": NAMESPACE},
        "spec": {
            "model": {"uri": f"file://{model}", "dtype": "float32"},
            "draft": {"targetLayers": 2},
            "pipeline": {"stages": STAGES},
            "serving": {"maxSequences": 2, "maxContext": 256, "threads": 1, "drainSeconds": 1},
        },
    }


@dataclass(frozen=True)
class Watched:
    """What runs, and the Prometheus that watches it."""

    prometheus: Prometheus
    addresses: dict[str, str]
    """Of everything that has metrics."""


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    program("prometheus")
    folder = tmp_path_factory.mktemp("watched")
    resource = manifest(tiny_model(folder / "model"))
    with ExitStack() as stack:
        up = stack.enter_context(running(resource))
        addresses = metrics_addresses(up)
        operator = stack.enter_context(keeping(resource))
        stack.enter_context(load(up.url))
        config = {
            "global": {"evaluation_interval": "1s"},
            "scrape_configs": [*pipeline_config(resource, addresses), operator_config(operator)],
            "rule_files": [str(CHART / "rules" / "*.yaml")],
        }
        watching = stack.enter_context(prometheus.running(config, folder))
        yield Watched(watching, {**addresses, "operator": operator})


def metrics_addresses(up: Up) -> dict[str, str]:
    """Where each process of a pipeline has its metrics."""
    ports = {target.process: target.port for target in up.targets() if target.role == "health"}
    return {"draft": up.url.removeprefix("http://")} | {
        process: f"{LOOPBACK}:{port}" for process, port in ports.items()
    }


@contextmanager
def load(url: str) -> Iterator[None]:
    """Clients that ask again as soon as they are answered, until this ends."""
    stop = threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not stop.is_set():
                body = {"model": "tiny", "prompt": "All is well", "max_tokens": 24, "temperature": 0}
                client.post("/v1/completions", json=body).raise_for_status()

    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(ask) for _ in range(CLIENTS)]
        try:
            yield
        finally:
            stop.set()
            for each in asking:
                each.result()
