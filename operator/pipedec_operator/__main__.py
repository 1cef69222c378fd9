"""`python -m pipedec_operator`: keep every PipeDecDeployment of a cluster, or of some namespaces."""

from __future__ import annotations

import signal
import sys

if __name__ == "__main__":  # process 1 has no default, and to import takes seconds
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

import asyncio
import logging
from typing import Annotated

import kopf
import typer

from pipedec import __version__, logs
from pipedec.errors import PipeDecError
from pipedec.health import Health, HealthServer
from pipedec.metrics import service_registry
from pipedec_operator import names
from pipedec_operator.cluster import ClusterError, connect
from pipedec_operator.handlers import Keeper, Key, register, settings
from pipedec_operator.manifests import Setting
from pipedec_operator.metrics import OperatorMetrics
from pipedec_operator.namespaces import Scope
from pipedec_operator.reconcile import Reconciler, with_optional_kinds
from pipedec_operator.reports import Reports

SOON_SECONDS = 10.0

_log = logging.getLogger(__name__)


def main(
    stage_image: Annotated[str, typer.Option(help="Image of stages, where a resource names none.")],
    draft_image: Annotated[str, typer.Option(help="Image of draft pods, where a resource names none.")],
    namespace: Annotated[list[str] | None, typer.Option(help="Keep this namespace alone. May be repeated.")] = None,
    own_namespace: Annotated[
        str, typer.Option(envvar="POD_NAMESPACE", help="Where this runs; network policies let it ask draft pods.")
    ] = "",
    pod_monitor_label: Annotated[
        list[str] | None,
        typer.Option(
            help="A label of every PodMonitor, by which a Prometheus selects it. May be repeated.", metavar="KEY=VALUE"
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Where /healthz, /readyz and /metrics listen.")] = "::",
    port: Annotated[int, typer.Option(help="Their port; 0: any free one.")] = 8080,
    workers: Annotated[int, typer.Option(min=1, help="Resources worked on at the same time.")] = 4,
    resync_seconds: Annotated[float, typer.Option(min=1, help="How often every resource is looked at anyway.")] = 300,
    log_level: Annotated[str, typer.Option(help="DEBUG, INFO, WARNING or ERROR.")] = "INFO",
    log_format: Annotated[str, typer.Option(help="text or json.")] = "text",
) -> None:
    """Keep every PipeDecDeployment."""
    labels = dict(map(_label, pod_monitor_label or ()))
    logs.configure(log_level, log_format, "operator")
    logging.getLogger("kopf").setLevel(max(logging.getLevelName(log_level), logging.WARNING))
    registry = service_registry("operator")
    metrics = OperatorMetrics(registry)
    cluster = connect(metrics.count_call)
    if cluster.first_known((names.RESOURCE,)) is None:
        raise PipeDecError(f"this cluster does not know {names.PLURAL}.{names.GROUP}; apply crds/ first")
    given = Setting(
        stage_image=stage_image,
        draft_image=draft_image,
        version=__version__,
        namespace=own_namespace,
        pod_monitor_labels=labels,
    )
    health = Health()
    with HealthServer(host, port, health, registry):
        setting = with_optional_kinds(given, cluster)
        scope = Scope(cluster, (names.RESOURCE, names.POD, *setting.kinds), namespace or ())
        metrics.keep(scope.wanted, scope.refused)
        _tell(scope)
        reports: Reports[Key] = Reports()
        keeper = Keeper(Reconciler(cluster, setting, reports.answers), metrics, resync_seconds, reports)
        asyncio.run(_serve(keeper, setting, workers, health, scope, resync_seconds))


def _label(given: str) -> tuple[str, str]:
    key, equals, value = given.partition("=")
    if not key or not equals:
        raise PipeDecError(f"--pod-monitor-label {given}: give a KEY=VALUE")
    return key, value


def _tell(scope: Scope) -> None:
    """Says which namespaces cannot be kept. Raises `PipeDecError` if none can."""
    if scope.refused and not scope.kept:
        told = "; ".join(f"{namespace}: {why}" for namespace, why in scope.refused.items())
        raise PipeDecError(f"no namespace can be kept: {told}. Give the operator its Role in them")
    for namespace, why in scope.refused.items():
        _log.error(
            "namespace %s is not kept: %s. Give the operator its Role there, or take it out of watchNamespaces",
            namespace,
            why,
        )
    if scope.wanted:
        _log.info("kept: %s", ", ".join(scope.kept))


async def _serve(
    keeper: Keeper, setting: Setting, workers: int, health: Health, scope: Scope, look_seconds: float
) -> None:
    """Works until it is asked to end. Raises `PipeDecError` when other namespaces can be kept than at the start, which
    are looked at so often: kopf takes them up, or lets them go, when it is started anew."""
    handlers, ready, asked = kopf.OperatorRegistry(), asyncio.Event(), asyncio.Event()
    kinds = (names.POD, *setting.kinds)
    register(handlers, keeper, kinds)
    operator = asyncio.create_task(
        kopf.operator(
            registry=handlers,
            settings=settings(kinds),
            standalone=True,
            clusterwide=not scope.wanted,
            namespaces=scope.kept,
            ready_flag=ready,
            stop_flag=asked,
        )
    )
    work = asyncio.create_task(keeper.run(workers, health))
    change = asyncio.create_task(_until_changed(scope, look_seconds))
    await asyncio.wait({operator, asyncio.create_task(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
    for number in (signal.SIGTERM, signal.SIGINT):  # in the place of kopf's, which do not say that they were called
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    health.reason = ""
    tasks = (operator, work, change)
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for error in results:
        if isinstance(error, Exception):
            raise error
    if ready.is_set() and not asked.is_set():
        raise PipeDecError(
            "watching was given up for good; what was logged before tells why (may it watch everywhere?)"
        )


async def _until_changed(scope: Scope, look_seconds: float) -> None:
    """Raises `PipeDecError` when other namespaces can be kept, at two looks: a server that has just started refuses
    what it has not read yet."""
    seen = False
    while True:
        # What is refused is waited for.
        await asyncio.sleep(min(look_seconds, SOON_SECONDS) if seen or scope.refused else look_seconds)
        try:
            before, seen = seen, await asyncio.to_thread(scope.changed)
        except ClusterError as error:
            _log.warning("looking at the namespaces to keep: %s", error)
            continue
        if before and seen:
            raise PipeDecError("other namespaces can be kept than at the start: to be started anew with them")


if __name__ == "__main__":
    app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    app.command()(main)
    try:
        app()
    except (PipeDecError, ClusterError) as error:
        sys.exit(str(error))
