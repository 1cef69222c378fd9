"""What is declared, what the services register, and what docs/metrics.md says, are one and the same."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Metric

from pipedec.metrics import service_registry
from pipedec.metrics.declared.process import SERVICES
from pipedec.metrics.family import Family
from pipedec.metrics.head import HeadCounts, HeadMetrics, HeadState
from pipedec.metrics.reference import SECTIONS, with_tables
from pipedec.metrics.requests import RequestMetrics
from pipedec.metrics.stage import StageMetrics
from pipedec_operator.cluster import ClusterError
from pipedec_operator.metrics import OperatorMetrics

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
DECLARED = {family.name: family for families in SECTIONS.values() for family in families}
RESOURCE = {
    "metadata": {"namespace": "shop", "name": "lion"},
    "spec": {"model": {"uri": "hf://a/b"}},
    "status": {
        "conditions": [{"type": "Ready", "status": "False", "reason": "StagesNotReady"}],
        "stages": [{"ready": True}, {"ready": False}],
    },
}


def head_state() -> HeadState:
    return HeadState(
        running=1, waiting=2, in_flight=3, kv_slots=8, kv_slots_used=4, epoch=7, epoch_live=True, degraded=False,
        malformed=1, unauthenticated=1, present=[True, False], heard=[0.5, float("inf")], steps={0: 0.1, 1: 0.2},
    )  # fmt: skip


def of_stage() -> CollectorRegistry:
    registry = service_registry("stage")
    metrics = StageMetrics(registry, 0)
    metrics.holds((0, 4), "float32", "cpu")
    return registry


def of_draft() -> CollectorRegistry:
    registry = service_registry("draft")
    HeadMetrics(registry, "lion", "adaptive", HeadCounts(), head_state)
    RequestMetrics(registry, "lion").http_responses.labels("/health", "200").inc()
    return registry


def of_operator() -> CollectorRegistry:
    registry = service_registry("operator")
    metrics = OperatorMetrics(registry)
    with pytest.raises(ClusterError), metrics.reconciling("shop"):
        raise ClusterError(409, "Conflict", "it was changed")
    metrics.count_call("get", 200)
    metrics.keep(["shop", "attic"], {"attic": "no Role"})
    metrics.observe(RESOURCE)
    return registry


def ours(registry: CollectorRegistry) -> Iterator[Metric]:
    return (family for family in registry.collect() if not family.name.startswith(("process_", "python_")))


def scraped_name(metric: Metric) -> str:
    return f"{metric.name}_total" if metric.type == "counter" else metric.name


def registered() -> list[Metric]:
    return [metric for registry in (of_stage(), of_draft(), of_operator()) for metric in ours(registry)]


def test_the_page_says_what_is_declared() -> None:
    page = PAGE.read_text()
    assert page == with_tables(page), "run: python -m pipedec.metrics.reference docs/metrics.md"


def test_the_page_and_the_declarations_cannot_differ() -> None:
    page = PAGE.read_text()
    for wrong in (
        page.replace("pipedec_stage_steps_total", "pipedec_stage_paces_total"),
        page.replace("| counter |", "| gauge |", 1),
        page.replace("`state`: busy, idle", "`state`: idle", 1),
        re.sub(r"\| `pipedec_head_hits_total`.*\n", "", page, count=1),
    ):
        assert wrong != page
        assert with_tables(wrong) == page
    with pytest.raises(ValueError, match="stage"):
        with_tables(page.replace("<!-- table: stage -->", ""))


def test_what_the_services_register_is_what_is_declared() -> None:
    found = registered()
    assert {scraped_name(metric) for metric in found} == set(DECLARED)
    for metric in found:
        family = DECLARED[scraped_name(metric)]
        assert (metric.type, metric.documentation) == (family.kind, family.text)
        assert metric.samples, family.name
        for sample in metric.samples:
            assert set(sample.labels) - {"le"} == set(family.labels), sample


@pytest.mark.parametrize("family", DECLARED.values(), ids=DECLARED)
def test_every_metric_is_named_and_explained(family: Family) -> None:
    assert re.fullmatch(r"pipedec_[a-z0-9_]+", family.name)
    assert family.name.endswith("_total") == (family.kind == "counter")
    assert family.text.endswith(".")
    assert family.unit
    if family.unit in ("seconds", "bytes"):  # base units, and the name says so
        assert family.name.removesuffix("_total").endswith(f"_{family.unit}")
    assert bool(family.buckets) == (family.kind == "histogram")
    assert list(family.buckets) == sorted(set(family.buckets))
    assert "le" not in family.labels
    assert all(family.labels.values()), "what bounds a label must be said"
    used = set(re.findall(r"pipedec_\w+", family.query))
    assert family.name in {re.sub(r"_(bucket|sum|count)$", "", name) for name in used} | used


def test_queries_use_only_metrics_that_there_are() -> None:
    page = PAGE.read_text()
    for name in set(re.findall(r"\bpipedec_\w+", page)) - {"pipedec_"}:
        assert name in DECLARED or re.sub(r"_(bucket|sum|count)$", "", name) in DECLARED, name


def test_resources_are_counted_by_phase_and_reason() -> None:
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)

    def count(phase: str, reason: str) -> float | None:
        return registry.get_sample_value("pipedec_operator_resources", {"phase": phase, "reason": reason})

    metrics.observe(RESOURCE)
    metrics.observe({**RESOURCE, "metadata": {"namespace": "shop", "name": "wolf"}})
    assert count("Pending", "StagesNotReady") == 2
    ready = {"conditions": [{"type": "Ready", "status": "True", "reason": "AllComponentsReady"}]}
    metrics.observe({**RESOURCE, "status": ready})
    assert (count("Pending", "StagesNotReady"), count("Ready", "AllComponentsReady")) == (1, 1)
    metrics.forget("shop", "lion")
    assert (count("Pending", "StagesNotReady"), count("Ready", "AllComponentsReady")) == (1, 0)


def test_of_a_resource_that_is_asked_to_be_suspended_no_stage_is_wanted() -> None:
    """From that moment: its last pods may take an hour to end, and nobody is to be called for that."""
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    labels = {"namespace": "shop", "name": "lion"}
    for suspended, wanted in ((False, 2), (True, 0), (False, 2)):
        metrics.observe({**RESOURCE, "spec": {"suspend": suspended}})
        counts = [
            registry.get_sample_value("pipedec_deployment_stages", {**labels, "state": state})
            for state in ("wanted", "ready")
        ]
        assert counts == [wanted, 1]


def test_a_pass_is_counted_by_what_became_of_it() -> None:
    registry = CollectorRegistry()
    metrics = OperatorMetrics(registry)
    for again in (False, True, True):
        with metrics.reconciling("shop") as going:
            going.again = again
    with pytest.raises(KeyError), metrics.reconciling("shop"):
        raise KeyError("a mistake of ours")
    labels = {"namespace": "shop"}
    results = {
        result: registry.get_sample_value("pipedec_operator_reconcile_total", {**labels, "result": result})
        for result in ("settled", "again", "error")
    }
    assert results == {"settled": 1, "again": 2, "error": 1}
    internal = {**labels, "error_type": "Internal"}
    assert registry.get_sample_value("pipedec_operator_reconcile_errors_total", internal) == 1
    assert registry.get_sample_value("pipedec_operator_reconcile_duration_seconds_count", labels) == 4


def test_every_service_tells_its_version() -> None:
    for service in SERVICES:
        (info,) = ours(service_registry(service))
        assert info.samples[0].labels["service"] == service
        assert info.samples[0].labels["version"]
