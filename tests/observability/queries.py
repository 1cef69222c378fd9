"""Every query that people run, of the dashboards and of the runbook; and the metrics that there are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector

from observability.__main__ import CHART
from observability.rules import RUNBOOK
from pipedec.metrics.reference import SECTIONS

VARIABLES = {"$namespace": "lab", "$pipeline": "tiny", "$replica": ".*", "$__rate_interval": "10s"}
_NAME = re.compile(r"\b(?:pipedec|process|python)_\w+|\bup\b")
_QUOTED = re.compile(r'"[^"]*"')


def dashboards() -> dict[str, Any]:
    """The chart's dashboards by file name."""
    return {path.name: json.loads(path.read_text()) for path in sorted((CHART / "dashboards").iterdir())}


def panels(dashboard: dict[str, Any]) -> list[dict[str, Any]]:
    """Its panels but for the headings."""
    return [panel for panel in dashboard["panels"] if panel["type"] != "row"]


def panel_queries() -> Iterator[tuple[str, str]]:
    """(where it is, query) with the variables chosen."""
    for name, dashboard in dashboards().items():
        for panel in panels(dashboard):
            for target in panel["targets"]:
                expression = target["expr"]
                for variable, value in VARIABLES.items():
                    expression = expression.replace(variable, value)
                yield f"{name}: {panel['title']} {target['refId']}", expression


def metrics_of(expression: str) -> set[str]:
    """Names of the metrics in an expression, as they are scraped."""
    return set(_NAME.findall(_QUOTED.sub("", expression)))


def exported() -> set[str]:
    """Names of everything that is scraped of the services."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    names = {"up", *(sample.name for family in registry.collect() for sample in family.samples)}
    for family in (each for section in SECTIONS.values() for each in section):
        suffixes = ("_bucket", "_sum", "_count") if family.kind == "histogram" else ("",)
        names |= {family.name + suffix for suffix in suffixes}
    return names


def runbook() -> str:
    return (Path(__file__).parents[2] / RUNBOOK).read_text()


def runbook_sections() -> dict[str, str]:
    """What it says of each alert, by name."""
    parts = re.split(r"^## (PipeDec\w+)\n", runbook(), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def runbook_queries() -> list[str]:
    """PromQL in it: what is indented like a command, and is none."""
    blocks = re.findall(r"^    (.+)$", "".join(runbook_sections().values()), flags=re.MULTILINE)
    return [line for line in blocks if not line.startswith("kubectl ")]
