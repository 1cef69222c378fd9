"""Panels in one style. Every one has a title, a unit, and a description that tells how to read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common as choices
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")


class Query(NamedTuple):
    """An expression, and what its series are called: a text with `{{label}}`."""

    expression: str
    legend: str = ""


class Limits(NamedTuple):
    """Values from which on a number is amber, and red; red the smaller one: the number is better the larger it is."""

    amber: float
    red: float

    def build(self) -> dashboard.ThresholdsConfig:
        colours = ("green", "orange", "red") if self.red > self.amber else ("red", "orange", "green")
        steps = zip((None, *sorted(self)), colours, strict=True)
        return _thresholds([models.Threshold(value=value, color=colour) for value, colour in steps])


def time_series(
    title: str, unit: str, description: str, *queries: Query, stacked: bool = False, most: float | None = None
) -> models.Panel:
    """Lines over time; `stacked`: areas, one upon the other; `most`: the largest value there can be."""
    panel = (
        timeseries.Panel()
        .unit(unit)
        .min(0)
        .line_width(1)
        .fill_opacity(60 if stacked else 10)
        .show_points(choices.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(choices.LegendDisplayMode.LIST)
            .placement(choices.LegendPlacement.BOTTOM)
        )
        .tooltip(common.VizTooltipOptions().mode(choices.TooltipDisplayMode.MULTI).sort(choices.SortOrder.DESCENDING))
    )
    if stacked:
        panel.stacking(common.StackingConfig().mode(choices.StackingMode.NORMAL))
    if most is not None:
        panel.max(most)
    return _finished(panel, title, description, queries)


def number(title: str, unit: str, description: str, query: Query, limits: Limits | None = None) -> models.Panel:
    """One number and its course behind it, coloured by its limits if it has any."""
    plain = _thresholds([models.Threshold(value=None, color="blue")])
    panel = (
        stat.Panel()
        .unit(unit)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(choices.BigValueGraphMode.AREA)
        .color_mode(choices.BigValueColorMode.VALUE)
        .color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))
        .thresholds(limits.build() if limits else plain)
    )
    return _finished(panel, title, description, [query])


def heat_map(title: str, unit: str, description: str, query: Query, axis: str, most: float) -> models.Panel:
    """A row for each series, whose legend must be a number, for only then they are in order; the value as a colour
    from 0 to `most`."""
    panel = (
        heatmap.Panel()
        .unit(unit)
        .calculate(False)
        .color(heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Greens").steps(64).min(0).max(most))
        .cell_gap(1)
        .cell_values(heatmap.CellValues().unit(unit))
        .y_axis(heatmap.YAxisConfig().axis_label(axis).reverse(True))
        .mode(choices.TooltipDisplayMode.SINGLE)
        .show_color_scale(True)
    )
    return _finished(panel, title, description, [query])


class Column(NamedTuple):
    """A number in each line of a table."""

    title: str
    unit: str
    expression: str


def overview(
    title: str, unit: str, description: str, columns: Sequence[Column], links: Mapping[str, str] | None = None
) -> models.Panel:
    """A table: a line for each combination of labels, with its labels and its columns.

    `links`: for a label, where its value leads to. `unit` is of columns that no other one is given for.
    """
    names = {f"Value #{reference}": column.title for reference, column in zip(ascii_uppercase, columns, strict=False)}
    arrange = {"excludeByName": {"Time": True}, "renameByName": names}
    panel = (
        table.Panel()
        .unit(unit)
        .with_transformation(models.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(models.DataTransformerConfig(id_val="organize", options=arrange))
    )
    for column in columns:
        panel.override_by_name(column.title, [models.DynamicConfigValue(id_val="unit", value=column.unit)])
    for label, url in (links or {}).items():
        link = [{"title": title, "url": url}]
        panel.override_by_name(label, [models.DynamicConfigValue(id_val="links", value=link)])
    return _finished(panel, title, description, [Query(column.expression) for column in columns], instant=True)


def _finished(
    builder: Builder[models.Panel], title: str, description: str, queries: Sequence[Query], instant: bool = False
) -> models.Panel:
    panel = builder.build()
    panel.title, panel.description, panel.datasource = title, description, DATASOURCE
    panel.targets = []
    for reference, query in zip(ascii_uppercase, queries, strict=False):
        target = prometheus.Dataquery().ref_id(reference).expr(query.expression).legend_format(query.legend)
        if instant:
            target.instant().format(PromQueryFormat.TABLE)
        panel.targets.append(target.build())
    return panel


def _thresholds(steps: list[models.Threshold]) -> dashboard.ThresholdsConfig:
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)
