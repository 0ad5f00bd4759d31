"""Numbers, durations, sizes and times as a page writes them."""

from __future__ import annotations

import datetime
import json
import math
from typing import Any
from urllib.parse import quote

from imf_ray.pages.model import Success


def success_text(success: Success) -> str:
    """Return a success rate with its interval, such as `0.75 [0.60, 0.86]`."""
    return f"{success.rate:.2f} {interval_text(success)}"


def interval_text(success: Success) -> str:
    """Return the interval of a success rate, such as `[0.60, 0.86]`."""
    return f"[{success.low:.2f}, {success.high:.2f}]"


def number_text(value: float, digits: int = 3) -> str:
    """Return a number with some significant digits, such as `0.0312`, `12,400` or `1e-06`."""
    if not math.isfinite(value):
        return str(value)
    if 10**digits <= abs(value) < 1e9:
        return f"{value:,.0f}"
    text = f"{value:.{digits}g}"
    mantissa, exponent_mark, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent_mark else text


def value_text(value: Any) -> str:
    """Return an option's value: text as it is, floats with six digits at most, others as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return number_text(value, 6)
    return json.dumps(value, default=str)


def count_text(count: int, noun: str) -> str:
    """Return a number with its noun, such as `1 trial` or `2 trials`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def duration_text(seconds: float) -> str:
    """Return a duration in two units at most, such as `45 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def time_text(seconds: float) -> str:
    """Return a time, such as `2026-11-30 13:05:09 UTC`."""
    moment = datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    return moment.strftime("%Y-%m-%d %H:%M:%S UTC")


def size_text(num_bytes: int) -> str:
    """Return a size, such as `320 kB` or `1.4 MB`."""
    if num_bytes < 1_000_000:
        return f"{math.ceil(num_bytes / 1000)} kB"
    return f"{num_bytes / 1e6:.1f} MB"


def relative_url(path: str) -> str:
    """Return a relative path as an address; a colon in its first part does not name a scheme."""
    return quote(path if path.startswith(".") else f"./{path}")
