"""Queries and panels of the Grafana dashboards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    heatmap,
    prometheus,
    stat,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from imf_ray.metrics_export import METRICS, PREFIX, Kind

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TRIALS = 'sweep=~"$sweep",trial=~"$trial"'
SWEEPS = 'sweep=~"$sweep"'
BASELINES = 'sweep=~"$sweep",trial=~"expert|untrained"'
TRAINED = f'{TRIALS},trial!~"expert|untrained"'
"""Tags of the selected trials, of the selected sweeps, of their baselines, and of no baseline."""
LEGEND = "{{sweep}} / {{trial}}"
WIDTH, HEIGHT = 24, 8
"""Width of a dashboard in columns, and height of a panel in rows."""
SECONDS, FRACTION, COUNT, BYTES, BYTES_PER_SECOND = "s", "percentunit", "short", "bytes", "Bps"
"""Grafana's units."""
Queries = Mapping[str, str]
"""PromQL expressions, by legend."""


# Queries


def gauge(name: str, tags: str = TRIALS, by: str = "sweep, trial") -> str:
    """Return the query of a gauge. Two processes of a run export it if the run was restarted."""
    return f"max by ({by}) ({series(name, Kind.GAUGE)}{{{tags}}})"


def latest(name: str, tags: str = TRIALS) -> str:
    """Return the query of a gauge's last value in the shown time, also of trials that ended."""
    return f"last_over_time({gauge(name, tags)}[$__range:])"


def total(name: str, tags: str = TRIALS, by: str = "sweep, trial") -> str:
    """Return the query of a counter since the Ray cluster started."""
    return f"sum by ({by}) ({series(name, Kind.COUNTER)}{{{tags}}})"


def rate(name: str, tags: str = TRIALS, by: str = "sweep, trial") -> str:
    """Return the query of a counter's increase per second.

    The sum comes first: the series of a process begins with its first value, which is no increase
    of that series, but one of the sum.
    """
    return f"rate({total(name, tags, by)}[$__rate_interval:])"


def quantile(fraction: float, name: str, by: str = "sweep, trial", tags: str = TRIALS) -> str:
    """Return the query of a histogram's quantile over the rate interval."""
    buckets = f"sum by (le, {by}) ({series(name, Kind.HISTOGRAM)}_bucket{{{tags}}})"
    return f"histogram_quantile({fraction}, rate({buckets}[$__rate_interval:]))"


def overall_quantile(fraction: float, name: str, by: str = "sweep, trial") -> str:
    """Return the query of a histogram's quantile since the Ray cluster started."""
    buckets = f"sum by (le, {by}) ({series(name, Kind.HISTOGRAM)}_bucket{{{TRIALS}}})"
    return f"histogram_quantile({fraction}, {buckets})"


def series(name: str, kind: Kind) -> str:
    """Return the name of a metric in Prometheus.

    Raises:
        ValueError: the metric is of another kind.
    """
    if METRICS[name].kind is not kind:
        raise ValueError(f"{name} is a {METRICS[name].kind}, not a {kind}")
    return f"ray_{PREFIX}{name}"


def quantiles(name: str, legend: str = LEGEND, by: str = "sweep, trial") -> Queries:
    return {
        f"{legend}, median": quantile(0.5, name, by),
        f"{legend}, 95 %": quantile(0.95, name, by),
    }


# Panels


def _with_queries(panel: Any, queries: Queries, instant: bool = False) -> Any:
    for number, (legend, expression) in enumerate(queries.items()):
        query = prometheus.Dataquery().expr(expression).ref_id(chr(ord("A") + number))
        query = query.datasource(SOURCE).legend_format(legend)
        panel = panel.with_target(query.instant() if instant else query.range())
    return panel.datasource(SOURCE)


def lines(
    title: str, description: str, queries: Queries, unit: str = COUNT, width: int = 12
) -> timeseries.Panel:
    """Return a panel with a curve for each series."""
    panel = timeseries.Panel().title(title).description(description).unit(unit)
    panel = panel.span(width).height(HEIGHT).line_width(2).fill_opacity(0)
    # A trial is validated every few minutes; its points are connected.
    panel = panel.span_nulls(True).show_points(common_models.VisibilityMode.AUTO)
    if unit == FRACTION:
        panel = panel.axis_soft_min(0).axis_soft_max(1)
    legend = common.VizLegendOptions().show_legend(True).calcs(["lastNotNull"])
    legend = legend.display_mode(common_models.LegendDisplayMode.TABLE)
    panel = panel.legend(legend.placement(common_models.LegendPlacement.BOTTOM))
    tooltip = common.VizTooltipOptions().mode(common_models.TooltipDisplayMode.MULTI)
    panel = panel.tooltip(tooltip.sort(common_models.SortOrder.DESCENDING))
    return _with_queries(panel, queries)


def number(
    title: str, description: str, queries: Queries, unit: str = COUNT, width: int = 4
) -> stat.Panel:
    """Return a panel with the last value of each series as a number."""
    panel = stat.Panel().title(title).description(description).unit(unit).span(width).height(5)
    panel = panel.graph_mode(common_models.BigValueGraphMode.NONE)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.text_mode(common_models.BigValueTextMode.VALUE_AND_NAME).no_value("none")
    return _with_queries(panel.color_mode(common_models.BigValueColorMode.NONE), queries)


def bars(title: str, description: str, queries: Queries, unit: str = FRACTION) -> bargauge.Panel:
    """Return a panel with the last value of each series as a bar from 0 to 1."""
    panel = bargauge.Panel().title(title).description(description).unit(unit).min(0).max(1)
    panel = panel.span(12).height(HEIGHT).orientation(common_models.VizOrientation.HORIZONTAL)
    panel = panel.reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    panel = panel.display_mode(common_models.BarGaugeDisplayMode.BASIC)
    return _with_queries(panel, queries)


def counts_by_time(title: str, description: str, name: str) -> heatmap.Panel:
    """Return a heat map of a histogram: time, duration, and number of observations."""
    buckets = f"sum by (le) ({series(name, Kind.HISTOGRAM)}_bucket{{{TRIALS}}})"
    query = prometheus.Dataquery().expr(f"increase({buckets}[$__rate_interval:])").ref_id("A")
    query = query.datasource(SOURCE).legend_format("{{le}}").range().format(PromQueryFormat.HEATMAP)
    panel = heatmap.Panel().title(title).description(description).span(12).height(HEIGHT)
    panel = panel.calculate(False).unit(COUNT).y_axis(heatmap.YAxisConfig().unit(SECONDS))
    return panel.datasource(SOURCE).with_target(query)


def trial_table(title: str, description: str) -> table.Panel:
    """Return a table with a row for each trial, best first, that links to the trial's dashboard."""
    columns = {
        "success": ("success_ratio", FRACTION),
        "95 % interval from": ("success_ratio_low", FRACTION),
        "to": ("success_ratio_high", FRACTION),
        "action error": ("action_error", COUNT),
        "step": ("training_step", COUNT),
        "samples/s": ("samples_per_second", COUNT),
        "restarts": ("restarts", COUNT),
        "failed validations": ("failed_validations", COUNT),
    }
    queries = {column: latest(name) for column, (name, _) in columns.items()}
    panel = table.Panel().title(title).description(description).span(WIDTH).height(HEIGHT + 2)
    panel = _with_queries(panel, queries, instant=True)
    for target in panel.build().targets or []:
        target.format_val = PromQueryFormat.TABLE
    names = {f"Value #{chr(ord('A') + n)}": column for n, column in enumerate(columns)}
    organize = {"excludeByName": {"Time": True}, "renameByName": names}
    panel = panel.transformations(
        [
            models.DataTransformerConfig(id_val="merge", options={}),
            models.DataTransformerConfig(id_val="organize", options=organize),
        ]
    )
    for column, (_, unit) in columns.items():
        panel = panel.override_by_name(column, [models.DynamicConfigValue("unit", unit)])
    link = {
        "title": "Show this trial",
        "url": "/d/imf-ray-trial?var-sweep=${__data.fields.sweep}"
        "&var-trial=${__data.fields.trial}&${__url_time_range}",
    }
    panel = panel.override_by_name("trial", [models.DynamicConfigValue("links", [link])])
    return panel.sort_by([common.TableSortByFieldState().display_name("success").desc(True)])


def interval_lines() -> timeseries.Panel:
    """Return the panel of a trial's success rate with its interval as a band."""
    panel = lines(
        "Success rate",
        "Success rate of each validation with its 95 % interval, and of the expert and the "
        "untrained policy.",
        {
            "success": gauge("success_ratio"),
            "lower limit": gauge("success_ratio_low"),
            "upper limit": gauge("success_ratio_high"),
            "{{trial}}": gauge("success_ratio", BASELINES),
        },
        FRACTION,
    )
    band = [
        models.DynamicConfigValue("custom.fillBelowTo", "lower limit"),
        models.DynamicConfigValue("custom.fillOpacity", 20),
        models.DynamicConfigValue("custom.lineWidth", 0),
    ]
    panel = panel.override_by_name("upper limit", band)
    return panel.override_by_name("lower limit", band[2:])
