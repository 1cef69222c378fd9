"""Panels on a dashboard: sections of lines, and the variables that choose what is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.models import dashboard as models

from observability.panels import DATASOURCE

WIDTH = 24  # columns of a dashboard
EVERY = ".*"


@dataclass(frozen=True, slots=True)
class Line:
    """Panels beside each other, of equal width."""

    height: int
    panels: Sequence[models.Panel]


@dataclass(frozen=True, slots=True)
class Section:
    """Lines under a heading."""

    title: str
    lines: Sequence[Line]


def arranged(sections: Sequence[Section]) -> list[models.Panel | models.RowPanel]:
    """All panels with their places and numbers."""
    return list(_arranged(sections))


def _arranged(sections: Sequence[Section]) -> Iterator[models.Panel | models.RowPanel]:
    top, number = 0, 1
    for section in sections:
        place = models.GridPos(h=1, w=WIDTH, x=0, y=top)
        yield models.RowPanel(id_val=number, title=section.title, collapsed=False, grid_pos=place, panels=[])
        top, number = top + 1, number + 1
        for line in section.lines:
            width = WIDTH // len(line.panels)
            for column, panel in enumerate(line.panels):
                panel.id_val = number
                panel.grid_pos = models.GridPos(h=line.height, w=width, x=column * width, y=top)
                yield panel
                number += 1
            top += line.height


def datasource() -> dashboard.DatasourceVariable:
    """Which Prometheus."""
    return dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")


def choice(name: str, label: str, query: str, several: bool = False) -> dashboard.QueryVariable:
    """A label's values among the series that there are; `several`: any number of them, at first all."""
    variable = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        .query({"query": query, "refId": name})
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.NATURAL_ASC)
        .multi(several)
        .include_all(several)
    )
    if several:
        variable.all_value(EVERY).current(models.VariableOption(selected=True, text="All", value="$__all"))
    return variable


def base(uid: str, title: str, description: str) -> dashboard.Dashboard:
    """A dashboard without panels."""
    return (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["pipedec"])
        .editable()
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-1h", "now")
        .with_variable(datasource())
        .link(
            dashboard.DashboardLink("PipeDec")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["pipedec"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    )
