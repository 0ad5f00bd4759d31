"""Curves of metrics that grow while they are read, with a bounded number of points."""

from __future__ import annotations

import bisect
import statistics
from array import array
from typing import TypeVar

from imf_ray.pages.model import Curve

Number = TypeVar("Number", int, float)
MAX_POINTS = 300
"""Largest number of points of a curve on a page."""


class CurveLog:
    """The values of one metric by training step, in the order of steps.

    Args:
        metric: name of the metric.
        has_interval: every value has a confidence interval.
    """

    def __init__(self, metric: str, has_interval: bool = False) -> None:
        self._metric, self._has_interval = metric, has_interval
        self._steps, self._values = array("q"), array("d")
        self._lows, self._highs = array("d"), array("d")
        self._stride, self._index = 1, 0
        self._last: tuple[int, float] | None = None

    def append(self, step: int, value: float) -> None:
        """Add a value. Those of the same and of later steps are removed: the run was resumed."""
        while self._steps and self._steps[-1] >= step:
            self._steps.pop()
            self._values.pop()
        self._last = (step, value)
        if self._index % self._stride == 0:
            self._steps.append(step)
            self._values.append(value)
            if len(self._steps) > 2 * MAX_POINTS:
                self._steps, self._values = self._steps[::2], self._values[::2]
                self._stride *= 2
        self._index += 1

    def insert(self, step: int, value: float, low: float, high: float) -> None:
        """Add or replace the value of a step, which may be an earlier one."""
        index = bisect.bisect_left(self._steps, step)
        columns = [(self._values, value)]
        if self._has_interval:
            columns += [(self._lows, low), (self._highs, high)]
        if index < len(self._steps) and self._steps[index] == step:
            for column, item in columns:
                column[index] = item
            return
        self._steps.insert(index, step)
        for column, item in columns:
            column.insert(index, item)

    @property
    def median(self) -> float | None:
        """Median of the stored values; None without any."""
        return statistics.median(self._values) if self._values else None

    def curve(self, max_points: int = MAX_POINTS) -> Curve | None:
        """Return the curve, thinned to some `max_points` points; None without any."""
        if not self._steps:
            return None
        stride = -(-len(self._steps) // max_points)
        steps = _thin(self._steps, stride)
        values, lows, highs = (
            _thin(column, stride) for column in (self._values, self._lows, self._highs)
        )
        if self._last is not None and steps[-1] < self._last[0]:
            steps.append(self._last[0])
            values.append(self._last[1])
        return Curve(self._metric, steps, values, lows, highs)


def _thin(column: array[Number], stride: int) -> array[Number]:
    """Return every `stride`-th value, and the last one."""
    thinned = column[::stride]
    if len(column) and (len(column) - 1) % stride:
        thinned.append(column[-1])
    return thinned
