"""Learning curves: one chart for each metric, with a line for each row."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from imf_ray.pages.charts import (
    NUM_COLORS,
    Scale,
    line,
    make_scale,
    path,
    row_key,
    svg,
    text,
    x_axis,
    y_axis,
)
from imf_ray.pages.charts_success import reference_lines
from imf_ray.pages.model import Curve, Row, State

SUCCESS_METRIC = "rollout/success_rate"
TITLES = {
    SUCCESS_METRIC: "Success rate in validation",
    "action_error": "Action error on held-out episodes",
    "loss": "Training loss",
    "lr": "Learning rate",
    "samples_per_s": "Samples per second",
}
"""Titles of metrics, in the order of the charts; further metrics follow under their own names."""
EXACT_METRICS = ("lr", SUCCESS_METRIC)
"""Metrics that the smoothing of the page leaves as they are."""
SHOWN_CURVES = 10
"""Number of rows whose curves are shown first; the reader can add the others."""
MAX_CURVES = 100
"""Maximum number of rows with curves."""
MAX_POINTS = 24_000
"""Maximum number of points of all curves of a page, which bounds its size."""
MIN_POINTS, MAX_POINTS_EACH = 24, 240
CLIP = "plot-area"
"""Id of the clip path that a page defines once, see `clip_path`."""
WIDTH, HEIGHT = 420.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 408.0, 10.0, 200.0


@dataclass(frozen=True)
class CurveChart:
    """The chart of one metric."""

    metric: str
    title: str
    svg: Markup


@dataclass(frozen=True)
class LegendEntry:
    """One line of the legend, which all charts share."""

    key: str
    label: str
    style: str
    """CSS classes of colour and dashes."""
    is_shown: bool


def rows_with_curves(rows: Sequence[Row]) -> list[Row]:
    """Return the best rows that have curves, `MAX_CURVES` at most."""
    return [row for row in rows if any(curve.steps for curve in row.curves)][:MAX_CURVES]


def legend(rows: Sequence[Row], labels: Mapping[str, str]) -> list[LegendEntry]:
    """Return the legend of the rows of `rows_with_curves`."""
    styles = _styles(rows)
    return [
        LegendEntry(row_key(row.name), labels[row.name], styles[row.name], index < SHOWN_CURVES)
        for index, row in enumerate(rows)
    ]


def curve_charts(rows: Sequence[Row], baselines: Sequence[Row]) -> list[CurveChart]:
    """Return a chart for each metric of the rows of `rows_with_curves`.

    Args:
        baselines: rows whose success rates are shown as horizontal lines.
    """
    styles = _styles(rows)
    by_metric: dict[str, list[tuple[Row, Curve]]] = {metric: [] for metric in TITLES}
    for row in rows:
        for curve in row.curves:
            if any(math.isfinite(value) for value in curve.values):
                by_metric.setdefault(curve.metric, []).append((row, curve))
    num_curves = sum(len(curves) for curves in by_metric.values())
    num_points = min(max(MAX_POINTS // max(num_curves, 1), MIN_POINTS), MAX_POINTS_EACH)
    charts = []
    for metric, curves in by_metric.items():
        title = TITLES.get(metric, metric)
        if len(curves) > 1 and _are_equal([curve for _, curve in curves]):
            title += f", the same in all {len(curves)}"
        if curves:
            chart = _chart(metric, title, curves, styles, num_points, baselines)
            charts.append(CurveChart(metric, title, chart))
    return charts


def _are_equal(curves: Sequence[Curve]) -> bool:
    """Return True if all curves have the same values as far as each of them goes."""
    longest = max(curves, key=lambda curve: len(curve.steps))
    return all(
        list(curve.values) == list(longest.values)[: len(curve.values)]
        and list(curve.steps) == list(longest.steps)[: len(curve.steps)]
        for curve in curves
    )


def clip_path() -> Markup:
    """Return the hidden SVG that cuts curves off at the borders of the charts."""
    return Markup(
        f'<svg width="0" height="0" class="defs" aria-hidden="true"><clipPath id="{CLIP}">'
        f'<rect x="{LEFT - 3}" y="{TOP - 3}" width="{RIGHT - LEFT + 6}" '
        f'height="{BOTTOM - TOP + 6}"/></clipPath></svg>'
    )


def _styles(rows: Sequence[Row]) -> dict[str, str]:
    """Return CSS classes of each row: by name if the colours suffice, otherwise by rank."""
    names = [row.name for row in rows]
    if len(names) <= NUM_COLORS:
        names.sort()
    return {
        name: f"c{index % NUM_COLORS}"
        + (f" d{index // NUM_COLORS % 3}" if index >= NUM_COLORS else "")
        for index, name in enumerate(names)
    }


def _chart(
    metric: str,
    title: str,
    curves: Sequence[tuple[Row, Curve]],
    styles: Mapping[str, str],
    num_points: int,
    baselines: Sequence[Row],
) -> Markup:
    steps = [step for _, curve in curves for step in (curve.steps[0], curve.steps[-1])]
    x = make_scale([0, *steps], LEFT, RIGHT, allow_log=False)
    x = Scale(0.0, x.high, LEFT, RIGHT)
    if metric == SUCCESS_METRIC:
        y = Scale(0.0, 1.0, BOTTOM, TOP)
    else:
        y = make_scale(_scale_values(curves), BOTTOM, TOP)
    parts = [y_axis(y, LEFT, RIGHT), x_axis(x, TOP, BOTTOM)]
    marks = []
    if metric == SUCCESS_METRIC:
        parts += [_reference(rate, label, y) for rate, label in reference_lines(baselines)]
    for index, (row, curve) in enumerate(curves):
        style = styles[row.name] + ("" if index < SHOWN_CURVES else " off")
        content = _curve(curve, x, y, num_points)
        marks.append(f'<g data-r="{row_key(row.name)}" class="{style}">{content}</g>')
    parts.append(f'<g clip-path="url(#{CLIP})">{"".join(marks)}</g>')
    scale_note = ", logarithmic" if y.is_log else ""
    parts.append(text((LEFT + RIGHT) / 2, HEIGHT - 6, "training step", "axis", "middle"))
    attributes = (
        f'class="curves" data-x="{_numbers(x)}" data-y="{_numbers(y)}" '
        f'data-log="{int(y.is_log)}" data-exact="{int(metric in EXACT_METRICS)}"'
    )
    description = f"{title} over training steps{scale_note}, one line for each row."
    return svg(WIDTH, HEIGHT, title, description, *parts, attributes=attributes)


def _scale_values(curves: Sequence[tuple[Row, Curve]]) -> list[float]:
    """Return the values that an axis spans: those of a diverged row would hide all others."""
    rows = [pair for pair in curves if pair[0].state != State.FAILED] or curves
    return [value for _, curve in rows for value in curve.values]


def _reference(rate: float, label: str, y: Scale) -> str:
    """Return the horizontal line of a baseline."""
    height = y(rate)
    label_y = height + 12 if rate > 0.5 else height - 4
    name = text(RIGHT - 4, label_y, label, "tick", "end")
    return line(LEFT, height, RIGHT, height, "reference") + name


def _numbers(scale: Scale) -> str:
    return " ".join(f"{value:.6g}" for value in (scale.low, scale.high, scale.start, scale.end))


def _curve(curve: Curve, x: Scale, y: Scale, num_points: int) -> str:
    """Return the line of a curve and the band of its intervals."""
    parts = []
    if curve.lows:
        upper = [(x(s), y(v)) for s, v in zip(curve.steps, curve.highs, strict=True)]
        lower = [(x(s), y(v)) for s, v in zip(curve.steps, curve.lows, strict=True)]
        parts.append(f'<path class="band" d="{path([*upper, *reversed(lower)])}Z"/>')
    points = [
        (x(curve.steps[index]), y(value) if math.isfinite(value := curve.values[index]) else value)
        for index in thin(curve.values, num_points)
    ]
    parts.append(f'<path class="line" d="{path(points)}"/>')
    if len(points) <= 30 or curve.lows:
        dots = "".join(f"M{px:.1f} {py:.1f}h0" for px, py in points if math.isfinite(py))
        parts.append(f'<path class="dots" d="{dots}"/>')
    return "".join(parts)


def thin(values: Sequence[float], num: int) -> list[int]:
    """Return the indices of at most `num` values: the least and greatest of each of num / 2 parts.

    All indices are returned if there are no more than `num` values. The first and last are kept.
    """
    if len(values) <= num:
        return list(range(len(values)))
    parts = max((num - 2) // 2, 1)
    indices = {0, len(values) - 1}
    for part in range(parts):
        span = range(len(values) * part // parts, len(values) * (part + 1) // parts)
        finite = [index for index in span if math.isfinite(values[index])]
        if finite:
            indices |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
    return sorted(indices)
