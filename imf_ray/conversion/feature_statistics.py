"""Statistics of features in the form of LeRobot's `stats.json`."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
FeatureStatistics = dict[str, np.ndarray]
"""`min`, `max`, `mean`, `std`, `count` and the quantiles, each an array."""


def vector_statistics(values: np.ndarray) -> FeatureStatistics:
    """Return the statistics of the dimensions of vectors (T, D)."""
    numbers = values.astype(np.float64)
    quantiles = {name: np.quantile(numbers, q, axis=0) for name, q in QUANTILES.items()}
    return {
        "min": numbers.min(axis=0),
        "max": numbers.max(axis=0),
        "mean": numbers.mean(axis=0),
        "std": numbers.std(axis=0),
        "count": np.array([len(numbers)]),
        **quantiles,
    }


def image_statistics(images: Sequence[np.ndarray]) -> FeatureStatistics:
    """Return the statistics of the channels of images (H, W, 3) uint8, in 0..1 and (3, 1, 1)."""
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255.0
    stats = vector_statistics(pixels)
    shaped = {name: value.reshape(3, 1, 1) for name, value in stats.items() if name != "count"}
    return {**shaped, "count": np.array([len(images)])}


def merge_statistics(parts: Sequence[FeatureStatistics]) -> FeatureStatistics:
    """Merge the statistics of episodes as LeRobot does.

    Quantiles cannot be merged exactly: the lower ones, including the median, are the minimum of
    those of the episodes, and the upper ones the maximum.
    """
    counts = np.array([float(part["count"][0]) for part in parts])
    weights = (counts / counts.sum()).reshape(-1, *[1] * parts[0]["mean"].ndim)
    means = np.stack([part["mean"] for part in parts])
    mean = (weights * means).sum(axis=0)
    variances = np.stack([part["std"] for part in parts]) ** 2 + (means - mean) ** 2
    return {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt((weights * variances).sum(axis=0)),
        "count": np.array([int(counts.sum())]),
        **{
            name: (np.min if q <= 0.5 else np.max)([part[name] for part in parts], axis=0)
            for name, q in QUANTILES.items()
        },
    }
