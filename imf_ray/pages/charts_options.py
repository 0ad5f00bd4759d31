"""Charts of success over the varied options: a scatter for each option, and parallel lines."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from imf_ray.labels import short_labels
from imf_ray.pages.charts import (
    Scale,
    fixed,
    line,
    make_scale,
    path,
    row_key,
    short_number,
    svg,
    text,
    x_axis,
    y_axis,
)
from imf_ray.pages.charts_success import describe, sorted_values
from imf_ray.pages.formats import number_text, value_text
from imf_ray.pages.model import Row

MAX_CATEGORIES = 6
"""Maximum number of different numbers that a chart shows as categories."""
MIN_PARALLEL_OPTIONS = 3
"""Minimum number of options for parallel lines."""
CATEGORY_LABEL_WIDTH = 14
"""Maximum number of characters of a category on a vertical axis."""
NARROW_LABEL_WIDTH = 8
"""Maximum number of characters of a category on a horizontal axis with `MAX_CATEGORIES`."""
OPTION_LABEL_WIDTH = 20
"""Maximum number of characters of an option above its axis."""
WIDTH, HEIGHT = 420.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 408.0, 10.0, 200.0


class OptionAxis:
    """The values of one option along an axis: as categories, or as numbers."""

    def __init__(self, values: Sequence[object], start: float, end: float) -> None:
        names = sorted_values(values)
        is_numeric = all(
            isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            for value in values
        )
        self.scale: Scale | None = None
        self.categories: dict[str, float] = {}
        if is_numeric and len(names) > MAX_CATEGORIES:
            self.scale = make_scale((float(str(value)) for value in values), start, end)
            return
        self.width = (end - start) / len(names)
        """Width of a category."""
        self.categories = {
            name: start + self.width * (index + 0.5) for index, name in enumerate(names)
        }

    def __call__(self, value: object) -> float:
        """Return the coordinate of a value."""
        if self.scale is not None:
            return self.scale(float(str(value)))
        return self.categories[value_text(value)]

    def ticks(self, label_width: int = CATEGORY_LABEL_WIDTH) -> list[tuple[float, str]]:
        """Return coordinates with labels, of `label_width` characters at most for categories."""
        if self.scale is not None:
            return [(self.scale(tick), short_number(tick)) for tick in self.scale.ticks(4)]
        labels = short_labels(self.categories, label_width)
        stride = math.ceil(len(labels) / MAX_CATEGORIES)
        return [(self.categories[name], labels[name]) for name in list(labels)[::stride]]


def scatter_plots(rows: Sequence[Row], varied: Mapping[str, str]) -> list[tuple[str, Markup]]:
    """Return the name of each option and a chart of the success rate over its values.

    Args:
        varied: short name of each option, by option name.
    """
    plots = []
    for option, name in varied.items():
        shown = [row for row in rows if row.success is not None and option in row.params]
        if shown:
            plots.append((name, _scatter(shown, option, name)))
    return plots


def _scatter(rows: Sequence[Row], option: str, name: str) -> Markup:
    axis = OptionAxis([row.params[option] for row in rows], LEFT, RIGHT)
    y = Scale(0.0, 1.0, BOTTOM, TOP)
    parts = [y_axis(y, LEFT, RIGHT)]
    if axis.scale is not None:
        parts.append(x_axis(axis.scale, TOP, BOTTOM))
    else:
        is_narrow = len(axis.categories) > MAX_CATEGORIES // 2
        width = NARROW_LABEL_WIDTH if is_narrow else CATEGORY_LABEL_WIDTH
        parts += [text(x, BOTTOM + 16, label, "tick", "middle") for x, label in axis.ticks(width)]
    counts: dict[str, int] = {}
    totals: dict[str, int] = {}
    for row in rows:
        category = value_text(row.params[option])
        totals[category] = totals.get(category, 0) + 1
    for row in rows:
        assert row.success is not None
        category = value_text(row.params[option])
        x = axis(row.params[option])
        if axis.scale is None:  # rows of a category stand side by side
            counts[category] = counts.get(category, 0) + 1
            x += axis.width * 0.7 * (counts[category] / (totals[category] + 1) - 0.5)
        parts.append(
            f'<g data-r="{row_key(row.name)}" class="mark thin">'
            f"<title>{escape(describe(row))}</title>"
            f"{line(x, y(row.success.low), x, y(row.success.high), 'whisker')}"
            f'<circle cx="{fixed(x)}" cy="{fixed(y(row.success.rate))}" r="3.5"/></g>'
        )
    parts.append(text((LEFT + RIGHT) / 2, HEIGHT - 6, name, "axis", "middle"))
    description = "Each dot is the success rate of a row; the line is its 95 % confidence interval."
    return svg(WIDTH, HEIGHT, f"Success rate over {name}", description, *parts)


def parallel_lines(rows: Sequence[Row], varied: Mapping[str, str]) -> Markup:
    """Return a chart with an axis for each option and a line for each row, up to its success rate.

    It is empty for fewer than three options.
    """
    shown = [row for row in rows if row.success is not None and set(varied) <= row.params.keys()]
    if not shown or len(varied) < MIN_PARALLEL_OPTIONS:
        return Markup()
    gap = 150.0
    width, bottom, top = 90 + gap * len(varied), 250.0, 36.0
    axes = {
        option: OptionAxis([row.params[option] for row in shown], bottom, top) for option in varied
    }
    success = Scale(0.0, 1.0, bottom, top)
    end = 40 + gap * len(varied)
    names = short_labels(varied.values(), OPTION_LABEL_WIDTH)
    lines, labels = [], []
    for row in reversed(shown):  # the best is drawn last, above the others
        assert row.success is not None
        points = [
            (40 + gap * index, axes[option](row.params[option]))
            for index, option in enumerate(varied)
        ]
        best = " best" if row is shown[0] else ""
        lines.append(
            f'<g data-r="{row_key(row.name)}" class="parallel{best}" '
            f'style="--share:{row.success.rate:.2f}"><title>{escape(describe(row))}</title>'
            f'<path d="{path([*points, (end, success(row.success.rate))])}"/></g>'
        )
    for index, (option, name) in enumerate(varied.items()):
        x = 40 + gap * index
        labels.append(line(x, top, x, bottom, "axis-line"))
        labels.append(text(x, 16, names[name], "axis", "middle"))
        labels += [text(x + 6, y + 4, label, "tick halo") for y, label in axes[option].ticks()]
    labels.append(line(end, top, end, bottom, "axis-line"))
    labels.append(text(end, 16, "success", "axis", "middle"))
    labels += [
        text(end + 6, success(tick) + 4, number_text(tick), "tick halo")
        for tick in success.ticks(4)
    ]
    description = "Each line is a row: its values of the options, then its success rate."
    return svg(width, 262, "Options and success rates", description, *lines, *labels)
