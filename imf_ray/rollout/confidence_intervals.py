"""Statistics of success rates: confidence intervals, paired test, sample size, Holm's adjustment.

scipy.stats is imported inside functions, because the import takes a second and rollout actors do
not need it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE = 0.95
"""Confidence level of all intervals; the significance level is 1 - CONFIDENCE."""
POWER = 0.8
"""Probability that a true difference is found significant, for `required_sample_size`."""
_Z_TWO_SIDED = NormalDist().inv_cdf((1.0 + CONFIDENCE) / 2.0)
"""Standard normal quantile of a two-sided interval at `CONFIDENCE`, about 1.96."""


class PairedOutcomes(NamedTuple):
    """Counts of the episodes of policies A and B: all, only A succeeded, only B succeeded."""

    episodes: int
    only_a: int
    only_b: int

    @property
    def difference(self) -> float:
        """Success rate of A minus that of B."""
        return (self.only_a - self.only_b) / self.episodes


def pair_outcomes(a: Sequence[bool], b: Sequence[bool]) -> PairedOutcomes:
    """Count the outcomes of two policies on the same episodes.

    Raises:
        ValueError: there are no outcomes, or different numbers of them.
    """
    if not a or len(a) != len(b):
        raise ValueError(f"Outcomes of {len(a)} and {len(b)} episodes cannot be paired.")
    return PairedOutcomes(
        episodes=len(a),
        only_a=sum(in_a and not in_b for in_a, in_b in zip(a, b, strict=True)),
        only_b=sum(in_b and not in_a for in_a, in_b in zip(a, b, strict=True)),
    )


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Return the 95 % score confidence interval of a success probability (Wilson, 1927).

    Raises:
        ValueError: unless 0 <= successes <= episodes and episodes > 0.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, episodes).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def paired_p_value(counts: PairedOutcomes) -> float:
    """Return the two-sided p value of the exact McNemar test, not adjusted.

    The test is a sign test on the episodes whose outcomes differ.
    """
    from scipy.stats import binomtest

    num_differing = counts.only_a + counts.only_b
    return float(binomtest(counts.only_a, num_differing).pvalue) if num_differing else 1.0


def difference_interval(counts: PairedOutcomes) -> tuple[float, float]:
    """Return a 95 % confidence interval of the difference of two paired success probabilities.

    The adjusted Wald interval of Bonett and Price (2012) for paired samples adds one to each count
    of differing episodes and two to the number of episodes.
    """
    adjusted_episodes = counts.episodes + 2
    only_a = (counts.only_a + 1) / adjusted_episodes
    only_b = (counts.only_b + 1) / adjusted_episodes
    difference = only_a - only_b
    half_width = _Z_TWO_SIDED * math.sqrt((only_a + only_b - difference**2) / adjusted_episodes)
    return max(-1.0, difference - half_width), min(1.0, difference + half_width)


def required_sample_size(counts: PairedOutcomes, comparisons: int = 1) -> int | None:
    """Return the total number of episodes for 80 % power; None if the observed difference is 0.

    Computes the sample size of McNemar's test (Connor, 1987). The observed shares of differing
    episodes are taken as the true ones. The significance level 0.05 is divided by the number of
    comparisons (Bonferroni).
    """
    if counts.only_a == counts.only_b:
        return None
    differing_share = (counts.only_a + counts.only_b) / counts.episodes
    difference = counts.difference
    z_level = NormalDist().inv_cdf(1.0 - (1.0 - CONFIDENCE) / comparisons / 2.0)
    z_power = NormalDist().inv_cdf(POWER)
    numerator = z_level * math.sqrt(differing_share)
    numerator += z_power * math.sqrt(differing_share - difference**2)
    return math.ceil((numerator / difference) ** 2)


def holm_adjust(p_values: Sequence[float]) -> list[float]:
    """Return p values adjusted for the number of comparisons (Holm, 1979), in the same order."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running_max = 0.0
    for rank, index in enumerate(order):
        running_max = max(running_max, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running_max
    return adjusted
