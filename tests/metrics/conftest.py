"""One small pipeline of real processes for all tests here, after a few requests; all it printed is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.up import Up, running
from tests.sockets import until
from tests.tiny import tiny_model

MODEL, STAGES, TOKENS = "lion", 2, 12
SECRET = "Xanthippe"  # in every prompt, and nowhere else
REQUEST_ID = "request-of-mine"


@dataclass
class Pipeline:
    """`answers` are those to the requests that were sent, all of `TOKENS` tokens."""

    up: Up
    client: httpx.Client
    answers: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, prompt: str) -> None:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
        response = self.client.post("/v1/completions", json=body, headers={"x-request-id": REQUEST_ID})
        assert response.status_code == 200, response.text
        self.answers.append(response.json())

    def scrape(self, process: str) -> dict[str, Metric]:
        """The metrics of a process, by their name as scraped."""
        role = "http" if process == "draft" else "health"
        port = next(target.port for target in self.up.targets() if (target.process, target.role) == (process, role))
        text = self.client.get(f"http://127.0.0.1:{port}/metrics").text
        found = text_string_to_metric_families(text)
        return {f"{each.name}_total" if each.type == "counter" else each.name: each for each in found}

    def stages(self) -> list[dict[str, Metric]]:
        return [self.scrape(f"stage {stage}") for stage in range(STAGES)]


def value(metrics: dict[str, Metric], name: str, **labels: str) -> float:
    """The sum of all samples of this name that have these labels."""
    family = metrics.get(name) or metrics[name.rpartition("_")[0]]
    found = [s.value for s in family.samples if s.name == name and s.labels.items() >= labels.items()]
    assert found, f"{name} has no sample with {labels}"
    return sum(found)


@pytest.fixture(scope="session")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pipeline]:
    model = tiny_model(tmp_path_factory.mktemp("model"))
    resource = {
        "apiVersion": "pipedec.dev/v1alpha1",
        "kind": "PipeDecDeployment",
        "metadata": {"name": MODEL},
        "spec": {
            "model": {"uri": f"file://{model}", "dtype": "float32"},
            "draft": {"targetLayers": 3},
            "pipeline": {"stages": STAGES},
            "serving": {"maxContext": 256, "threads": 1},
            "logging": {"level": "DEBUG", "stageLevel": "DEBUG", "format": "json"},
        },
    }
    with running(resource, "--verbose") as up, httpx.Client(base_url=up.url, timeout=60, trust_env=False) as client:
        pipeline = Pipeline(up, client)
        for question in ("who was", "and where lived", "what is said of"):
            pipeline.ask(f"{question} {SECRET}?")
        for wrong in ({"temperature": SECRET}, {"max_tokens": 10**6}, {"stop": [SECRET] * 99}, {"model": SECRET}):
            body = {"model": MODEL, "prompt": SECRET, **wrong}
            assert 400 <= client.post("/v1/completions", json=body).status_code < 500
        until(lambda: value(pipeline.scrape("draft"), "pipedec_head_batches_in_flight") == 0)
        # Stages tell the head what their steps took when they beat, and only of sizes that they have seen thrice.
        until(lambda: bool(pipeline.scrape("draft")["pipedec_head_plain_token_seconds"].samples))
        yield pipeline
