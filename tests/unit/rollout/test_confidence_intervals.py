"""Intervals and tests, against scipy.stats and exact binomial and trinomial sums."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from imf_ray.rollout.confidence_intervals import (
    PairedOutcomes,
    difference_interval,
    holm_adjust,
    pair_outcomes,
    paired_p_value,
    required_sample_size,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [(5, 5, 0.57, 1.0), (10, 10, 0.72, 1.0), (45, 50, 0.79, 0.96), (450, 500, 0.87, 0.92)],
)
def test_wilson_interval(successes: int, episodes: int, low: float, high: float) -> None:
    """Compare with published values and with the closed form."""
    interval = wilson_interval(successes, episodes)
    assert interval == pytest.approx((low, high), abs=0.005)
    share, z = successes / episodes, stats.norm.ppf(0.975)
    center = (share + z**2 / (2 * episodes)) / (1 + z**2 / episodes)
    spread = share * (1 - share) / episodes + z**2 / (4 * episodes**2)
    half = z / (1 + z**2 / episodes) * math.sqrt(spread)
    assert interval == pytest.approx((center - half, center + half), abs=1e-12)


@pytest.mark.parametrize("episodes", [10, 50, 100])
def test_coverage_of_the_wilson_interval(episodes: int) -> None:
    """The exact coverage is 95 % on average over true rates and never below 83 %."""
    intervals = np.array([wilson_interval(k, episodes) for k in range(episodes + 1)])
    rates = np.linspace(0.01, 0.99, 99)
    chances = stats.binom.pmf(np.arange(episodes + 1)[:, None], episodes, rates)
    covered = (intervals[:, :1] <= rates) & (rates <= intervals[:, 1:])
    coverage = (chances * covered).sum(axis=0)
    assert coverage.mean() == pytest.approx(0.95, abs=0.01) and coverage.min() > 0.83


@given(st.integers(0, 60), st.integers(0, 60))
def test_exact_mcnemar(only_a: int, only_b: int) -> None:
    """The p value is twice the smaller tail of Binomial(n, 1/2) and independent of the sign."""
    pairs = PairedOutcomes(200, only_a, only_b)
    tail = stats.binom.cdf(min(only_a, only_b), only_a + only_b, 0.5)
    assert paired_p_value(pairs) == pytest.approx(min(1.0, 2.0 * tail), rel=1e-9)
    mirrored = PairedOutcomes(200, only_b, only_a)
    assert paired_p_value(pairs) == paired_p_value(mirrored)
    low, high = difference_interval(pairs)
    assert difference_interval(mirrored) == pytest.approx((-high, -low))
    assert low <= pairs.difference <= high


@pytest.mark.parametrize("episodes", [20, 50])
def test_coverage_of_the_difference_interval(episodes: int) -> None:
    """The exact trinomial coverage is above 93 % for many shares of differing episodes."""
    counts = [(a, b) for a in range(episodes + 1) for b in range(episodes + 1 - a)]
    intervals = np.array([difference_interval(PairedOutcomes(episodes, a, b)) for a, b in counts])
    outcomes = np.array([(a, b, episodes - a - b) for a, b in counts])
    shares = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4)
    for only_a, only_b in itertools.product(shares, shares):
        chances = stats.multinomial.pmf(outcomes, episodes, [only_a, only_b, 1 - only_a - only_b])
        inside = (intervals[:, 0] <= only_a - only_b) & (only_a - only_b <= intervals[:, 1])
        assert 0.93 < (chances * inside).sum() <= 1.0


def test_required_sample_size_has_the_promised_power() -> None:
    """With that many episodes the asymptotic test has a power of 0.8, summed exactly."""
    observed = PairedOutcomes(100, 20, 8)
    needed = required_sample_size(observed)
    assert needed is not None
    differing = np.arange(needed + 1)
    chance = stats.binom.pmf(differing, needed, 0.28)
    power = 0.0
    for count, weight in zip(differing, chance, strict=True):
        wins = np.arange(count + 1)
        z = np.abs(2 * wins - count) / math.sqrt(count) if count else np.zeros(1)
        power += weight * stats.binom.pmf(wins, count, 20 / 28)[z > stats.norm.ppf(0.975)].sum()
    assert power == pytest.approx(0.8, abs=0.02)
    assert required_sample_size(PairedOutcomes(50, 3, 3)) is None
    # If many comparisons share the level, a pair that is not separated needs more episodes.
    just_missed = PairedOutcomes(100, 18, 4)
    assert min(1.0, 15 * paired_p_value(just_missed)) > 0.05
    needed = required_sample_size(just_missed, comparisons=15)
    assert needed is not None and needed > just_missed.episodes


def test_pair_outcomes() -> None:
    pairs = pair_outcomes([True, True, False, False], [True, False, True, False])
    assert pairs == PairedOutcomes(4, 1, 1) and pairs.difference == 0.0
    with pytest.raises(ValueError, match="2 and 1 episodes"):
        pair_outcomes([True, False], [True])


def test_holm_adjust() -> None:
    """Holm's step-down rule: the k-th smallest of m times m - k + 1, never decreasing."""
    assert holm_adjust([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm_adjust([0.5]) == [0.5] and holm_adjust([0.9, 0.8]) == [1.0, 1.0]
