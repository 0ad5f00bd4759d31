"""Merged statistics equal those of all vectors together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from imf_ray.data.running_stats import RunningStats, merge


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    center=st.floats(-1e6, 1e6),
    spread=st.floats(1e-6, 1e3),
    seed=st.integers(0, 2**32 - 1),
)
def test_merged_parts_equal_the_whole(
    counts: list[int], center: float, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    parts = [center + spread * rng.standard_normal((count, 3)) for count in counts]
    whole = np.concatenate(parts).astype(np.longdouble)
    merged = merge([RunningStats.from_array(part) for part in parts])
    assert merged.count == len(whole)
    assert merged.min == tuple(whole.min(0)) and merged.max == tuple(whole.max(0))
    ulp = np.finfo(np.float64).eps * max(abs(center), spread)
    np.testing.assert_allclose(merged.mean, whole.mean(0).astype(float), rtol=0, atol=8 * ulp)
    # Values are exact to an ulp of the center, however small the spread.
    np.testing.assert_allclose(merged.std, whole.std(0).astype(float), rtol=1e-12, atol=8 * ulp)


def test_a_small_spread_around_a_large_mean_is_kept() -> None:
    """The naive E[x^2] - E[x]^2 has an error far larger than the variance."""
    rng = np.random.default_rng(0)
    parts = [1e6 + 1e-3 * rng.standard_normal((400, 1)) for _ in range(50)]
    whole = np.concatenate(parts)
    naive = np.mean(whole**2) - np.mean(whole) ** 2
    exact = float(np.var(whole.astype(np.longdouble)))
    (std,) = merge([RunningStats.from_array(part) for part in parts]).std
    assert abs(std**2 - exact) < 1e-6 * exact < abs(naive - exact)
