"""How sure a success rate is."""

from __future__ import annotations

from scipy.stats import binomtest

CONFIDENCE = 0.95


def wilson_interval(successes: int, episodes: int) -> tuple[float, float]:
    """Bounds of Wilson's 95 % score interval of a success probability (Wilson, 1927).

    Raises:
        ValueError: unless 0 <= successes <= episodes and episodes > 0.
    """
    interval = binomtest(successes, episodes).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)
