"""Charts of success rates: whiskers of rows, differences of pairs, and the cells of a heat map."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from imf_ray.labels import short_labels
from imf_ray.pages.charts import (
    ERROR_COLORS,
    SUCCESS_COLORS,
    Scale,
    color_at,
    fixed,
    line,
    row_key,
    svg,
    text,
    text_color,
    x_axis,
    y_axis,
)
from imf_ray.pages.formats import interval_text, number_text, success_text, value_text
from imf_ray.pages.model import Pair, Row, State, Success

MAX_LABELLED_ROWS = 16
"""Maximum number of rows with a line and a label each; more rows stand side by side."""
LABEL_WIDTH, PAIR_LABEL_WIDTH = 26, 14
"""Maximum number of characters of a row's label in a chart, alone and as one of a pair."""
MIN_LINE_DISTANCE = 0.08
"""Minimum difference of the success rates of two lines with labels."""
LINE_LENGTH, LINE_HEIGHT, CHARACTER_WIDTH = 300.0, 22.0, 7.6
"""Length of a line with a label at its left, its height, and the width of a character."""


def chart_labels(rows: Iterable[Row]) -> dict[str, str]:
    """Return a short label for each row, by its name; labels of different rows differ."""
    rows = list(rows)
    labels = {row.name: row.label for row in rows}
    if len(set(labels.values())) < len(rows):
        labels = {row.name: row.name for row in rows}
    shortened = short_labels(labels.values(), LABEL_WIDTH)
    return {name: shortened[label] for name, label in labels.items()}


def whisker_plot(rows: Sequence[Row], baselines: Sequence[Row]) -> Markup:
    """Return a chart with the success rate of each row and its interval; empty without any."""
    evaluated = [row for row in rows if row.success is not None]
    if not evaluated:
        return Markup()
    references = [row for row in baselines if row.success is not None]
    if len(evaluated) <= MAX_LABELLED_ROWS:
        return _lines_of_whiskers(evaluated, references)
    return _columns_of_whiskers(evaluated, references)


def _lines_of_whiskers(rows: Sequence[Row], references: Sequence[Row]) -> Markup:
    labels = chart_labels([*references, *rows])
    left = _left_of_lines(max(map(len, labels.values())))
    width = left + LINE_LENGTH
    right = width - 12
    scale = Scale(0, 1, left, right)
    shown = sorted([*references, *rows], key=lambda row: -(row.success or _NONE).rate)
    bottom = 6 + LINE_HEIGHT * len(shown)
    parts = [x_axis(scale, 0, bottom, grid=True)]
    for index, row in enumerate(shown):
        y = 6 + LINE_HEIGHT * (index + 0.5)
        success = row.success or _NONE
        is_reference = row in references
        parts.append(
            f'<g data-r="{row_key(row.name)}" class="{"reference" if is_reference else "mark"}">'
            f"<title>{escape(describe(row))}</title>"
            f'<rect class="hit" x="0" y="{fixed(y - LINE_HEIGHT / 2)}" width="{fixed(width)}" '
            f'height="{fixed(LINE_HEIGHT)}"/>'
            f"{text(left - 10, y + 4, labels[row.name], anchor='end')}"
            f"{line(scale(success.low), y, scale(success.high), y, 'whisker')}"
            f'<circle cx="{fixed(scale(success.rate))}" cy="{fixed(y)}" r="4.5"/></g>'
        )
    parts.append(text((left + right) / 2, bottom + 32, "success rate", "axis", "middle"))
    return svg(width, bottom + 40, "Success rates", _DESCRIPTION, *parts)


def _left_of_lines(num_characters: int) -> float:
    """Return the left end of the lines, with space for labels in front of it."""
    return 24 + CHARACTER_WIDTH * num_characters


def _columns_of_whiskers(rows: Sequence[Row], references: Sequence[Row]) -> Markup:
    width, height, left, bottom = 760.0, 240.0, 40.0, 206.0
    scale = Scale(0, 1, bottom, 10)
    step = (width - 90 - left) / len(rows)
    parts = [y_axis(scale, left, width - 84, 5)]
    for rate, label in reference_lines(references):
        parts.append(line(left, scale(rate), width - 84, scale(rate), "reference"))
        parts.append(text(width - 78, scale(rate) + 4, label, "tick"))
    for index, row in enumerate(rows):
        x = left + step * (index + 0.5)
        success = row.success or _NONE
        parts.append(
            f'<g data-r="{row_key(row.name)}" class="mark thin">'
            f"<title>{escape(describe(row))}</title>"
            f"{line(x, scale(success.low), x, scale(success.high), 'whisker')}"
            f'<circle cx="{fixed(x)}" cy="{fixed(scale(success.rate))}" '
            f'r="{fixed(min(4.0, max(1.5, step / 3)))}"/></g>'
        )
    parts.append(text(left, height - 8, "rank 1", "tick"))
    parts.append(text(width - 90, height - 8, f"rank {len(rows)}", "tick", "end"))
    middle = (left + width - 90) / 2
    parts.append(text(middle, height - 8, "success rate, best first", "axis", "middle"))
    return svg(width, height, "Success rates, best first", _DESCRIPTION, *parts)


def reference_lines(baselines: Sequence[Row]) -> list[tuple[float, str]]:
    """Return success rates and labels of baselines; those of nearly the same rate are one line."""
    lines: list[tuple[float, str]] = []
    for row in sorted(baselines, key=lambda row: (row.success or _NONE).rate):
        if row.success is None:
            continue
        if lines and row.success.rate - lines[-1][0] < MIN_LINE_DISTANCE:
            lines[-1] = (lines[-1][0], f"{lines[-1][1]}, {row.label}")
        else:
            lines.append((row.success.rate, row.label))
    return lines


def describe(row: Row) -> str:
    """Return label, success and parameters of a row in one line."""
    params = ", ".join(f"{name}={value_text(value)}" for name, value in row.params.items())
    success = "not evaluated"
    if row.success is not None:
        success = f"success {success_text(row.success)}, n = {row.success.episodes}"
    return f"{row.label}: {success}" + (f" ({params})" if params else "")


def pair_plot(pairs: Sequence[Pair], labels: dict[str, str]) -> Markup:
    """Return a chart with the difference of each pair and its interval.

    Args:
        labels: short label of each policy, by name.
    """
    reach = max(max(abs(pair.low), abs(pair.high)) for pair in pairs) * 1.05 or 1.0
    left = _left_of_lines(2 * PAIR_LABEL_WIDTH + len(" - "))
    right = left + LINE_LENGTH - 12
    scale = Scale(-reach, reach, left, right)
    bottom = 6 + LINE_HEIGHT * len(pairs)
    names = {labels.get(name, name) for pair in pairs for name in (pair.a, pair.b)}
    shortened = short_labels(sorted(names), PAIR_LABEL_WIDTH)
    parts = [x_axis(scale, 0, bottom, grid=True), line(scale(0), 0, scale(0), bottom, "zero")]
    for index, pair in enumerate(pairs):
        y = 6 + LINE_HEIGHT * (index + 0.5)
        a, b = labels.get(pair.a, pair.a), labels.get(pair.b, pair.b)
        name = f"{shortened[a]} \u2212 {shortened[b]}"
        title = f"{a} minus {b}: {pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]"
        parts.append(
            f'<g class="mark"><title>{escape(title)}</title>'
            f"{text(left - 10, y + 4, name, anchor='end')}"
            f"{line(scale(pair.low), y, scale(pair.high), y, 'whisker')}"
            f'<circle cx="{fixed(scale(pair.difference))}" cy="{fixed(y)}" r="4.5"/></g>'
        )
    axis = "difference of success rates: first minus second policy"
    parts.append(text((left + right) / 2, bottom + 34, axis, "axis", "middle"))
    description = "Each line is the 95 % confidence interval of a difference; the dot is its value."
    return svg(right + 12, bottom + 40, "Differences of pairs", description, *parts)


@dataclass(frozen=True)
class HeatCell:
    """One cell of a heat map."""

    key: str
    value: str
    detail: str
    background: str
    color: str


@dataclass(frozen=True)
class HeatMap:
    """A table whose cells are coloured by a value, for the two options of a grid."""

    title: str
    row_option: str
    column_option: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[HeatCell | None]]]
    """Value of the row's option, and the cells."""
    legend: Sequence[tuple[str, str, str]]
    """Text, background and text colour of some values of the colour scale."""


def heat_maps(rows: Sequence[Row], varied: dict[str, str]) -> list[HeatMap]:
    """Return heat maps of success and action error over the two varied options of a grid.

    Args:
        varied: short name of each option, by option name.
    """
    maps = [_heat_map(rows, varied, "success rate", SUCCESS_COLORS, 0.0, 1.0)]
    errors = [row.action_error for row in rows if row.action_error is not None]
    if errors:
        low, high = min(errors), max(errors)
        title = "action error on held-out episodes"
        maps.append(_heat_map(rows, varied, title, ERROR_COLORS, low, high))
    return maps


def _heat_map(
    rows: Sequence[Row],
    varied: dict[str, str],
    title: str,
    colors: Sequence[str],
    low: float,
    high: float,
) -> HeatMap:
    row_option, column_option = varied
    row_values = sorted_values(row.params.get(row_option) for row in rows)
    column_values = sorted_values(row.params.get(column_option) for row in rows)
    by_values = {
        (value_text(row.params.get(row_option)), value_text(row.params.get(column_option))): row
        for row in rows
    }

    def background(value: float) -> str:
        return color_at(colors, (value - low) / (high - low) if high > low else 0.5)

    def cell(row: Row | None) -> HeatCell | None:
        if row is None:
            return None
        value, label, detail = _cell_texts(row, colors is SUCCESS_COLORS)
        fill = background(value) if value is not None else ""
        return HeatCell(row_key(row.name), label, detail, fill, text_color(fill) if fill else "")

    legend = []
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = low + (high - low) * share
        fill = background(value)
        legend.append((number_text(value), fill, text_color(fill)))
    return HeatMap(
        title,
        varied[row_option],
        varied[column_option],
        column_values,
        [(a, [cell(by_values.get((a, b))) for b in column_values]) for a in row_values],
        legend if high > low else [],
    )


def _cell_texts(row: Row, is_success: bool) -> tuple[float | None, str, str]:
    """Return value, text and further text of a cell; a row without a value shows its state."""
    if is_success and row.success is not None:
        detail = f"{interval_text(row.success)}\nn = {row.success.episodes}"
        return row.success.rate, f"{row.success.rate:.2f}", detail
    if not is_success and row.action_error is not None:
        return row.action_error, number_text(row.action_error), ""
    state = row.state if row.state != State.FINISHED else "not evaluated"
    return None, str(state), ""


def sorted_values(values: Iterable[object]) -> list[str]:
    """Return the different values of an option as text: numbers in order, then other values."""
    distinct = {value_text(value): value for value in values}
    numbers = {
        name: float(value)
        for name, value in distinct.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    others = sorted(name for name in distinct if name not in numbers)
    return [*sorted(numbers, key=lambda name: numbers[name]), *others]


_NONE = Success(0.0, 0.0, 0.0, 0)
_DESCRIPTION = "Each line is a 95 % confidence interval; the dot is the success rate."
