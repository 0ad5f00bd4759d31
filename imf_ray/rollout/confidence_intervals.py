"""How sure a success rate is, and how sure the difference of two on the same episodes.

scipy.stats is imported where it is needed: it takes a second, and simulators need it not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

CONFIDENCE = 0.95
POWER = 0.8
_Z = NormalDist().inv_cdf((1.0 + CONFIDENCE) / 2.0)


class PairedOutcomes(NamedTuple):
    """On how many of `episodes` common episodes A alone or B alone succeeded."""

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
        ValueError: there is none, or not as many of one as of the other.
    """
    if not a or len(a) != len(b):
        raise ValueError(f"Outcomes of {len(a)} and {len(b)} episodes cannot be paired.")
    both = list(zip(a, b, strict=True))
    return PairedOutcomes(
        len(both), sum(x and not y for x, y in both), sum(y and not x for x, y in both)
    )


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Bounds of Wilson's 95 % score interval of a success probability (Wilson, 1927).

    Raises:
        ValueError: unless 0 <= successes <= episodes and episodes > 0.
    """
    from scipy.stats import binomtest

    interval = binomtest(successes, episodes).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def paired_p_value(pairs: PairedOutcomes) -> float:
    """Two-sided p of the exact McNemar test (a sign test on the episodes that differ)."""
    from scipy.stats import binomtest

    differing = pairs.only_a + pairs.only_b
    return float(binomtest(pairs.only_a, differing).pvalue) if differing else 1.0


def difference_interval(pairs: PairedOutcomes) -> tuple[float, float]:
    """Bounds of a 95 % interval of the difference of two success probabilities, paired.

    The adjusted Wald interval of Bonett and Price (2012), equation for paired samples: one is
    added to each count of differing episodes and two to the number of episodes.
    """
    total = pairs.episodes + 2
    a, b = (pairs.only_a + 1) / total, (pairs.only_b + 1) / total
    half = _Z * math.sqrt((a + b - (a - b) ** 2) / total)
    return max(-1.0, a - b - half), min(1.0, a - b + half)


def required_sample_size(pairs: PairedOutcomes, comparisons: int = 1) -> int | None:
    """Episodes with which a difference like the one seen is found significant four times in five.

    Connor (1987), sample size of McNemar's test at power 0.8 and level 0.05, divided among as many
    comparisons as are made (Bonferroni), taking the shares of differing episodes for the true ones;
    None if no difference was seen.
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
    """p values adjusted for that many comparisons (Holm, 1979), in the order given."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted
