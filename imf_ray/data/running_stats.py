"""Moments of vectors, which merge: one pass over each file leaves what statistics are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RunningStats:
    """Of `count` vectors, each by dimension."""

    count: int
    min: tuple[float, ...]
    max: tuple[float, ...]
    mean: tuple[float, ...]
    squares: tuple[float, ...]
    """Sum of the squared distances from the mean."""

    @property
    def std(self) -> tuple[float, ...]:
        """Standard deviation of the vectors themselves, not of a population behind them."""
        return tuple(np.sqrt(np.array(self.squares) / self.count).tolist())


def moments_of(values: np.ndarray) -> RunningStats:
    """Moments of the rows of (n, D), n at least 1, computed in float64."""
    values = values.astype(np.float64)
    mean = values.mean(axis=0)
    return RunningStats(
        count=len(values),
        min=tuple(values.min(axis=0).tolist()),
        max=tuple(values.max(axis=0).tolist()),
        mean=tuple(mean.tolist()),
        squares=tuple(np.square(values - mean).sum(axis=0).tolist()),
    )


def beside(parts: Sequence[RunningStats]) -> RunningStats:
    """Moments of vectors that are put one behind the other, dimension after dimension."""
    return RunningStats(
        count=parts[0].count,
        min=sum((part.min for part in parts), ()),
        max=sum((part.max for part in parts), ()),
        mean=sum((part.mean for part in parts), ()),
        squares=sum((part.squares for part in parts), ()),
    )


def merge(parts: Sequence[RunningStats]) -> RunningStats:
    """Moments of all vectors of the parts together.

    Means are added as distances from the first one, and squares about each part's own mean, so that
    nothing is lost where the mean is large and the spread small (Chan, Golub and LeVeque 1983,
    eq. 2.1, for many parts at once).
    """
    counts = np.array([part.count for part in parts], dtype=np.float64)[:, None]
    means = np.array([part.mean for part in parts])
    mean = means[0] + (counts * (means - means[0])).sum(axis=0) / counts.sum()
    within = np.array([part.squares for part in parts]).sum(axis=0)
    between = (counts * np.square(means - mean)).sum(axis=0)
    return RunningStats(
        count=int(counts.sum()),
        min=tuple(np.min([part.min for part in parts], axis=0).tolist()),
        max=tuple(np.max([part.max for part in parts], axis=0).tolist()),
        mean=tuple(mean.tolist()),
        squares=tuple((within + between).tolist()),
    )
