"""The dashboards without a Prometheus: what is in the chart is what the code says, and fit for Grafana."""

from __future__ import annotations

import json
import re
from itertools import combinations
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from observability.__main__ import files
from observability.layout import WIDTH
from tests.observability.queries import dashboards, exported, metrics_of, panel_queries, panels

DASHBOARDS = dashboards()
_VARIABLE = re.compile(r"\$([a-z_]\w*)")
PANELS = [(name, panel) for name, dashboard in DASHBOARDS.items() for panel in panels(dashboard)]


def test_the_chart_has_what_the_code_says() -> None:
    """After a change: `python -m observability`."""
    written = files()
    folders = {path.parent for path in written}
    assert written == {path: path.read_text() for folder in folders for path in folder.iterdir()}


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
def test_it_is_of_grafanas_schema(dashboard: dict[str, Any]) -> None:
    """Whatever the schema does not know is lost when it is read."""
    register_default_plugins()
    assert within(dashboard, json.loads(json.dumps(Dashboard.from_json(dashboard), cls=JSONEncoder)))


def within(given: object, found: object) -> bool:
    """Whether all that is given is found; what was left out may have got a default."""
    match given, found:
        case dict(), dict():
            return all(key in found and within(value, found[key]) for key, value in given.items())
        case list(), list():
            return len(given) == len(found) and all(map(within, given, found))
        case _:
            return given == found


@pytest.mark.parametrize(
    "panel", [panel for _, panel in PANELS], ids=[f"{name}-{each['title']}" for name, each in PANELS]
)
def test_every_panel_explains_itself(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    assert panel["targets"]
    assert all(target["expr"] for target in panel["targets"])
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert panel["type"] in ("stat", "table") or all(legends)
    assert len(set(legends)) == len(legends) or panel["type"] == "table"


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
def test_panels_do_not_overlap(dashboard: dict[str, Any]) -> None:
    places = [panel["gridPos"] for panel in dashboard["panels"]]
    for place in places:
        assert place["w"] > 0
        assert place["h"] > 0
        assert 0 <= place["x"] <= WIDTH - place["w"]
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above
    assert sum(place["w"] * place["h"] for place in places) == WIDTH * max(p["y"] + p["h"] for p in places)


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
def test_numbers_and_names_are_unique(dashboard: dict[str, Any]) -> None:
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers)
    assert len({each["uid"] for each in DASHBOARDS.values()}) == len(DASHBOARDS)


@pytest.mark.parametrize("dashboard", DASHBOARDS.values(), ids=DASHBOARDS)
def test_variables_are_declared_before_they_are_used(dashboard: dict[str, Any]) -> None:
    declared = ["datasource"]
    for variable in dashboard["templating"]["list"][1:]:
        assert metrics_of(variable["query"]["query"]) <= exported()
        used = [name for name in ("namespace", "pipeline", "replica") if f"${name}" in variable["query"]["query"]]
        assert set(used) <= set(declared)
        declared.append(variable["name"])
    used = {
        name for panel in panels(dashboard) for each in panel["targets"] for name in _VARIABLE.findall(each["expr"])
    }
    assert used - {"__rate_interval"} == {*declared} - {"datasource"}


def test_every_metric_is_exported_by_that_name() -> None:
    for place, expression in panel_queries():
        assert metrics_of(expression) <= exported(), place
