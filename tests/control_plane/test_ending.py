"""An operator that watches no more, unasked, must not look as if it were done: a pod that ends with 0 says no why."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import kopf
import pytest
from prometheus_client import CollectorRegistry

from pipedec.errors import PipeDecError
from pipedec.health import Health
from pipedec_operator import names
from pipedec_operator.__main__ import _serve, _tell
from pipedec_operator.cluster import ClusterError
from pipedec_operator.handlers import Keeper
from pipedec_operator.manifests import Setting
from pipedec_operator.metrics import OperatorMetrics
from pipedec_operator.names import Kind, Object
from pipedec_operator.namespaces import Scope
from pipedec_operator.reconcile import Reconciler
from tests.control_plane.test_passes import Store

SETTING = Setting("stage:1", "draft:1", "9.9.9")
KINDS = (names.RESOURCE, names.POD)


class Cluster(Store):
    """A cluster of which these namespaces may be read, one set after the other, each for one look; the last stays. No
    answer at all while it is None."""

    def __init__(self, *allowed: set[str] | None) -> None:
        super().__init__()
        self.allowed = [*allowed]

    def list(self, kind: Kind, namespace: str, selector: dict[str, str]) -> list[Object]:
        if (kind, namespace) == (names.RESOURCE, "lab") and len(self.allowed) > 1:
            del self.allowed[0]
        allowed = self.allowed[0]
        if allowed is None:
            raise ClusterError(0, "Unreachable", "no route")
        if namespace not in allowed:
            raise ClusterError(403, "Forbidden", f"{kind.plural} is forbidden in {namespace}")
        return super().list(kind, namespace, selector)


def serve(cluster: Cluster) -> None:
    keeper = Keeper(Reconciler(cluster, SETTING), OperatorMetrics(CollectorRegistry()), 300)
    asyncio.run(_serve(keeper, SETTING, 1, Health(), Scope(cluster, KINDS, ["lab", "zoo"]), 0.01))


def test_kopf_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does, without an exception, when it may not watch one of its namespaces."""

    async def operator(*, ready_flag: asyncio.Event, **_: Any) -> None:
        ready_flag.set()
        await asyncio.sleep(0)

    monkeypatch.setattr(kopf, "operator", operator)
    with pytest.raises(PipeDecError, match="given up for good"):
        serve(Cluster({"lab", "zoo"}))


def test_the_kubelet_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def operator(*, ready_flag: asyncio.Event, stop_flag: asyncio.Event, **_: Any) -> None:
        ready_flag.set()
        while not stop_flag.is_set():
            await asyncio.sleep(0)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(kopf, "operator", operator)
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until it has its own
    try:
        serve(Cluster({"lab", "zoo"}))
    finally:
        signal.signal(signal.SIGTERM, handler)


@pytest.mark.parametrize("then", [{"lab", "zoo"}, set(), {"zoo"}])
def test_others_can_be_kept_than_at_the_start(monkeypatch: pytest.MonkeyPatch, then: set[str]) -> None:
    """One that is found later, or lost; before, the API server is away, and refuses for a moment what it has."""
    given = list[str]()

    async def operator(*, ready_flag: asyncio.Event, namespaces: list[str], **_: Any) -> None:
        given.extend(namespaces)
        ready_flag.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(kopf, "operator", operator)
    cluster = Cluster(set(), {"lab"}, None, set(), {"lab"}, then)
    with pytest.raises(PipeDecError, match="other namespaces can be kept"):
        serve(cluster)
    assert given == ["lab"]
    assert cluster.allowed == [then], "not for a moment's refusal"


def test_a_namespace_that_is_not_kept_is_told_with_the_remedy(caplog: pytest.LogCaptureFixture) -> None:
    registry = CollectorRegistry()
    metrics, scope = OperatorMetrics(registry), Scope(Cluster({"lab"}), KINDS, ["lab", "zoo"])
    metrics.observe({"metadata": {"namespace": "zoo", "name": "lion"}})
    metrics.keep(scope.wanted, scope.refused)
    _tell(scope)
    told = "namespace zoo is not kept: pipedecdeployments is forbidden in zoo. Give the operator its Role there"
    assert told in caplog.text

    def value(metric: str, **labels: str) -> float | None:
        return registry.get_sample_value(metric, labels)

    assert [value("pipedec_operator_namespace_kept", namespace=each) for each in scope.wanted] == [1, 0]
    assert value("pipedec_deployment_info", namespace="zoo", name="lion", model="") is None


def test_an_operator_that_may_keep_nothing_ends_with_the_reasons() -> None:
    with pytest.raises(PipeDecError, match="lab: pipedecdeployments is forbidden in lab; zoo: "):
        _tell(Scope(Cluster(set()), KINDS, ["lab", "zoo"]))


def test_without_names_every_namespace_is_kept() -> None:
    scope = Scope(Cluster(None), KINDS, [])
    assert not scope.changed()
    _tell(scope)
