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
from pipedec_operator.__main__ import _serve
from pipedec_operator.handlers import Keeper
from pipedec_operator.manifests import Setting
from pipedec_operator.metrics import OperatorMetrics
from pipedec_operator.reconcile import Reconciler
from tests.control_plane.test_passes import Store

SETTING = Setting("stage:1", "draft:1", "9.9.9")


def serve() -> None:
    keeper = Keeper(Reconciler(Store(), SETTING), OperatorMetrics(CollectorRegistry()), 300)
    asyncio.run(_serve(keeper, SETTING, 1, Health(), []))


def test_kopf_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does, without an exception, when it may not watch one of its namespaces."""

    async def operator(*, ready_flag: asyncio.Event, **_: Any) -> None:
        ready_flag.set()
        await asyncio.sleep(0)

    monkeypatch.setattr(kopf, "operator", operator)
    with pytest.raises(PipeDecError, match="given up for good"):
        serve()


def test_the_kubelet_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async def operator(*, ready_flag: asyncio.Event, stop_flag: asyncio.Event, **_: Any) -> None:
        ready_flag.set()
        while not stop_flag.is_set():
            await asyncio.sleep(0)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(kopf, "operator", operator)
    handler = signal.signal(signal.SIGTERM, signal.SIG_IGN)  # until it has its own
    try:
        serve()
    finally:
        signal.signal(signal.SIGTERM, handler)
