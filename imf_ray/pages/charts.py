"""Scales, axes and colours that all charts share.

A chart is an SVG text with a title and a description for screen readers. Its colours are classes
and variables of `static/page.css`. Coordinates have one decimal, which keeps a page small.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from imf_ray.pages.formats import number_text

NUM_COLORS = 10
"""Number of line colours in `static/page.css`."""
MIN_LOG_RATIO = 30.0
"""Ratio of the largest to the smallest value from which an axis is logarithmic."""
SUCCESS_COLORS = ("#f4f8f5", "#b9dec6", "#5fb083", "#1f7550", "#0c3d2b")
ERROR_COLORS = ("#fbf6ee", "#f3d5a4", "#e09c4b", "#a65a12", "#552c08")
"""Colours of a heat map from the lowest to the highest value."""


def row_key(name: str) -> str:
    """Return a short id of a row, by which the script finds the marks of the row in all charts."""
    return hashlib.blake2s(name.encode("utf-8", "surrogatepass"), digest_size=5).hexdigest()


def fixed(value: float) -> str:
    """Return a coordinate with one decimal at most."""
    text = f"{value:.1f}"
    return text.removesuffix(".0")


@dataclass(frozen=True)
class Scale:
    """A map from values to coordinates, linear or logarithmic."""

    low: float
    high: float
    start: float
    """Coordinate of `low`."""
    end: float
    """Coordinate of `high`."""
    is_log: bool = False

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value."""
        low, high, value = (self._position(x) for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self, num: int = 5) -> list[float]:
        """Return round values inside the scale, about `num` of them."""
        if self.is_log:
            return _log_ticks(self.low, self.high, num)
        return _linear_ticks(self.low, self.high, num)

    def _position(self, value: float) -> float:
        return math.log10(value) if self.is_log else value


def make_scale(
    values: Iterable[float], start: float, end: float, *, allow_log: bool = True
) -> Scale:
    """Return a scale that spans the finite values and a small margin.

    It is logarithmic if all values are positive and span a ratio of `MIN_LOG_RATIO`.
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
    if allow_log and low > 0 and high / low >= MIN_LOG_RATIO:
        margin = (high / low) ** 0.03
        return Scale(low / margin, high * margin, start, end, is_log=True)
    if low == high:
        width = abs(low) * 0.1 or 1.0
        return Scale(low - width, high + width, start, end)
    margin = (high - low) * 0.04
    return Scale(0.0 if 0 <= low < high * 0.3 else low - margin, high + margin, start, end)


def _linear_ticks(low: float, high: float, num: int) -> list[float]:
    raw = (high - low) / max(num, 1)
    size = 10.0 ** math.floor(math.log10(raw))
    step = next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def _log_ticks(low: float, high: float, num: int) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    factors = (1, 2, 5) if last - first <= 2 else (1,)
    stride = max(1, round((last - first) / num))
    ticks = [factor * 10.0**power for power in range(first, last + 1, stride) for factor in factors]
    return [tick for tick in ticks if low <= tick <= high]


def svg(
    width: float, height: float, title: str, description: str, *parts: str, attributes: str = ""
) -> Markup:
    """Return a chart with a title and a description for screen readers.

    Args:
        parts: SVG text, in which all texts are already escaped.
        attributes: further attributes of the `svg` element, already escaped.
    """
    return Markup(
        f'<svg viewBox="0 0 {fixed(width)} {fixed(height)}" style="max-width:{width * 1.1:.0f}px" '
        f'role="img" {attributes}>'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )


def text(x: float, y: float, content: str, css_class: str = "", anchor: str = "start") -> str:
    """Return a text element; `anchor` is start, middle or end."""
    names = f' class="{css_class}"' if css_class else ""
    align = f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{fixed(x)}" y="{fixed(y)}"{names}{align}>{escape(content)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css_class: str) -> str:
    """Return a straight line."""
    return f'<path class="{css_class}" d="M{fixed(x1)} {fixed(y1)}L{fixed(x2)} {fixed(y2)}"/>'


def path(points: Sequence[tuple[float, float]]) -> str:
    """Return the data of a path through points; it has a gap at each point that is not finite."""
    parts = []
    is_open = False
    for x, y in points:
        if not math.isfinite(y):
            is_open = False
            continue
        parts.append(f"{'L' if is_open else 'M'}{fixed(x)} {fixed(y)}")
        is_open = True
    return "".join(parts)


def y_axis(scale: Scale, left: float, right: float, num: int = 4) -> str:
    """Return horizontal grid lines with their values on the left."""
    parts = []
    for tick in scale.ticks(num):
        y = scale(tick)
        parts.append(line(left, y, right, y, "grid"))
        parts.append(text(left - 6, y + 4, number_text(tick), "tick", "end"))
    return "".join(parts)


def x_axis(scale: Scale, top: float, bottom: float, num: int = 5, *, grid: bool = False) -> str:
    """Return the values below a chart, and vertical grid lines if `grid`."""
    parts = []
    for tick in scale.ticks(num):
        x = scale(tick)
        parts.append(line(x, top if grid else bottom, x, bottom + 4, "grid"))
        parts.append(text(x, bottom + 16, short_number(tick), "tick", "middle"))
    return "".join(parts)


def short_number(value: float) -> str:
    """Return a number for an axis, such as `250`, `12k` or `1.5M`."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if suffix == 'k' else size):g}{suffix}"
    return number_text(value, 4)


def color_at(colors: Sequence[str], position: float) -> str:
    """Return the colour at a position from 0 to 1 of a colour scale, such as `#1f7550`."""
    offset = min(max(position, 0.0), 1.0) * (len(colors) - 1)
    index = min(int(offset), len(colors) - 2)
    rest = offset - index
    low, high = _channels(colors[index]), _channels(colors[index + 1])
    mixed = (round(a + (b - a) * rest) for a, b in zip(low, high, strict=True))
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def text_color(background: str) -> str:
    """Return black or white, whichever is more legible on a colour (contrast of 4.5 or more)."""
    return max("#000000", "#ffffff", key=lambda color: contrast(color, background))


def contrast(a: str, b: str) -> float:
    """Return the contrast of two colours, from 1 to 21 (WCAG 2.2, section 1.4.3)."""
    dark, light = sorted((_luminance(a), _luminance(b)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: str) -> float:
    """Return the relative luminance of a colour such as `#1f7550` (WCAG 2.2)."""
    shares = (channel / 255 for channel in _channels(color))
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _channels(color: str) -> tuple[int, int, int]:
    """Return red, green and blue of a colour such as `#1f7550`."""
    red, green, blue = (int(color[start : start + 2], 16) for start in (1, 3, 5))
    return red, green, blue
