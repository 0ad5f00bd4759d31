"""Statistics of vectors that can be merged, so that each file is read once for any split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class RunningStats:
    """Statistics of `count` vectors. Each statistic is a tuple with one number per dimension."""

    count: int
    min: tuple[float, ...]
    max: tuple[float, ...]
    mean: tuple[float, ...]
    m2: tuple[float, ...]
    """Sum of squared deviations from the mean."""

    @property
    def std(self) -> tuple[float, ...]:
        """Population standard deviation (divisor n, not n - 1)."""
        return tuple(np.sqrt(np.array(self.m2) / self.count).tolist())

    @classmethod
    def from_array(cls, values: np.ndarray) -> RunningStats:
        """Compute the statistics of the rows of `values` (n, D), n at least 1, in float64."""
        values = values.astype(np.float64)
        mean = values.mean(axis=0)
        return cls(
            count=len(values),
            min=tuple(values.min(axis=0).tolist()),
            max=tuple(values.max(axis=0).tolist()),
            mean=tuple(mean.tolist()),
            m2=tuple(np.square(values - mean).sum(axis=0).tolist()),
        )


def merge(parts: Sequence[RunningStats]) -> RunningStats:
    """Return the statistics of the vectors of all parts together.

    Means are merged as differences from the first mean, and each `m2` is relative to the mean of
    its own part. No precision is lost if the mean is large and the spread is small (Chan, Golub and
    LeVeque 1983, eq. 2.1, for many parts at once).
    """
    counts = np.array([part.count for part in parts], dtype=np.float64)[:, None]
    means = np.array([part.mean for part in parts])
    mean = means[0] + (counts * (means - means[0])).sum(axis=0) / counts.sum()
    within = np.array([part.m2 for part in parts]).sum(axis=0)
    between = (counts * np.square(means - mean)).sum(axis=0)
    return RunningStats(
        count=int(counts.sum()),
        min=tuple(np.min([part.min for part in parts], axis=0).tolist()),
        max=tuple(np.max([part.max for part in parts], axis=0).tolist()),
        mean=tuple(mean.tolist()),
        m2=tuple((within + between).tolist()),
    )


def concatenate(parts: Sequence[RunningStats]) -> RunningStats:
    """Return the statistics of vectors that are put together from those of all parts."""
    names = ("min", "max", "mean", "m2")
    columns = {name: tuple(x for part in parts for x in getattr(part, name)) for name in names}
    return RunningStats(count=parts[0].count, **columns)
