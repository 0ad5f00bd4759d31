"""Confidence intervals of a success rate, and of the difference of two on the same episodes.

scipy.stats is imported inside functions: it takes a second, and rollout actors do not need it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE = 0.95
POWER = 0.8
"""Probability with which `required_sample_size` finds a difference significant."""
_Z = NormalDist().inv_cdf((1.0 + CONFIDENCE) / 2.0)


class PairedOutcomes(NamedTuple):
    """Numbers of common episodes, and of those on which only A or only B succeeded."""

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
    pairs = list(zip(a, b, strict=True))
    return PairedOutcomes(
        len(pairs), sum(x and not y for x, y in pairs), sum(y and not x for x, y in pairs)
    )


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Return Wilson's 95 % score interval of a success probability (Wilson, 1927).

    Raises:
        ValueError: unless 0 <= successes <= episodes and episodes > 0.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, episodes).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def paired_p_value(pairs: PairedOutcomes) -> float:
    """Return the two-sided p value of the exact McNemar test.

    It is a sign test on the episodes whose outcomes differ.
    """
    from scipy.stats import binomtest

    differing = pairs.only_a + pairs.only_b
    return float(binomtest(pairs.only_a, differing).pvalue) if differing else 1.0


def difference_interval(pairs: PairedOutcomes) -> tuple[float, float]:
    """Return a 95 % interval of the difference of two paired success probabilities.

    The adjusted Wald interval of Bonett and Price (2012) for paired samples adds one to each count
    of differing episodes and two to the number of episodes.
    """
    total = pairs.episodes + 2
    a, b = (pairs.only_a + 1) / total, (pairs.only_b + 1) / total
    half = _Z * math.sqrt((a + b - (a - b) ** 2) / total)
    return max(-1.0, a - b - half), min(1.0, a - b + half)


def required_sample_size(pairs: PairedOutcomes, comparisons: int = 1) -> int | None:
    """Return how many episodes find the observed difference significant four times in five.

    The sample size of McNemar's test (Connor, 1987) at power 0.8. The level 0.05 is divided by the
    number of comparisons (Bonferroni). The observed shares of differing episodes are taken as the
    true ones. None if there is no difference.
    """
    if pairs.only_a == pairs.only_b:
        return None
    differing = (pairs.only_a + pairs.only_b) / pairs.episodes
    delta = pairs.difference
    z_level = NormalDist().inv_cdf(1.0 - (1.0 - CONFIDENCE) / comparisons / 2.0)
    z_power = NormalDist().inv_cdf(POWER)
    root = z_level * math.sqrt(differing) + z_power * math.sqrt(differing - delta**2)
    return math.ceil((root / delta) ** 2)


def holm_adjust(p_values: Sequence[float]) -> list[float]:
    """Adjust p values for the number of comparisons (Holm, 1979); their order stays."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    running_max = 0.0
    for rank, index in enumerate(order):
        running_max = max(running_max, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running_max
    return adjusted
