"""Every dashboard and alert, on a real Prometheus that watches a real pipeline under load."""

from __future__ import annotations

from math import isnan

import httpx
import pytest

from observability.alerts import EVERY
from tests.observability.conftest import Watched
from tests.observability.prometheus import Prometheus, eventually, promtool
from tests.observability.queries import metrics_of, panel_queries, runbook_queries


def has_data(prometheus: Prometheus, expression: str) -> bool:
    return any(not isnan(float(series["value"][1])) for series in prometheus.query(expression))


def test_every_target_is_scraped(watched: Watched) -> None:
    expected = {
        ("pipedec", "tiny", "0", None),
        ("pipedec", "tiny", "0", "0"),
        ("pipedec", "tiny", "0", "1"),
        ("pipedec-operator", None, None, None),
    }

    def scraped() -> set[tuple[str | None, ...]]:
        found = [target["labels"] for target in watched.prometheus.targets() if target["health"] == "up"]
        return {tuple(each.get(label) for label in ("job", "pipeline", "replica", "stage")) for each in found}

    eventually(lambda: scraped() == expected)


def test_no_label_collides(watched: Watched) -> None:
    """A label that both a target and a metric have would be renamed, and queries by it would find nothing."""
    assert watched.prometheus.series('{__name__=~"pipedec_.+", exported_stage!=""}') == []
    assert watched.prometheus.series('{__name__=~"pipedec_.+", exported_namespace!=""}') == []


def test_every_panel_has_data(watched: Watched) -> None:
    missing = dict(panel_queries())

    def all_have() -> bool:
        for place, expression in list(missing.items()):
            if has_data(watched.prometheus, expression):
                del missing[place]
        return not missing

    try:
        eventually(all_have)
    except AssertionError:
        pytest.fail(f"no data for {missing}")


def test_every_alert_evaluates_and_watches_something(watched: Watched) -> None:
    prometheus = watched.prometheus
    eventually(lambda: all(rule["health"] == "ok" for rule in prometheus.rules()))
    assert {rule["name"] for rule in prometheus.rules()} == {alert.name for alert in EVERY}
    for alert in EVERY:
        prometheus.query(alert.expression)
        for metric in metrics_of(alert.expression):
            assert prometheus.series(metric), f"{alert.name}: there is no {metric}"


def test_every_query_of_the_runbook_evaluates(watched: Watched) -> None:
    for query in runbook_queries():
        watched.prometheus.query(query)


def test_only_what_is_true_fires(watched: Watched) -> None:
    """All is well here, but that more clients ask than are served, which takes ten minutes to be worth a call."""
    firing = watched.prometheus.query('ALERTS{alertstate="firing"}')
    assert {each["metric"]["alertname"] for each in firing} == set()


def test_metrics_are_as_prometheus_wants_them(watched: Watched) -> None:
    for process, address in watched.addresses.items():
        result = promtool("check", "metrics", given=httpx.get(f"http://{address}/metrics").text)
        assert (result.returncode, result.stdout) == (0, ""), process
