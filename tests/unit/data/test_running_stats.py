"""Moments merge to those of all vectors together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from imf_ray.data.running_stats import beside, merge, moments_of


@given(
    counts=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    center=st.floats(-1e6, 1e6),
    spread=st.floats(1e-6, 1e3),
    seed=st.integers(0, 2**32 - 1),
)
def test_merged_parts_are_the_whole(
    counts: list[int], center: float, spread: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    parts = [center + spread * rng.standard_normal((count, 3)) for count in counts]
    whole = np.concatenate(parts).astype(np.longdouble)
    found = merge([moments_of(part) for part in parts])
    assert found.count == len(whole)
    assert found.min == tuple(whole.min(0)) and found.max == tuple(whole.max(0))
    ulp = np.finfo(np.float64).eps * max(abs(center), spread)
    np.testing.assert_allclose(found.mean, whole.mean(0).astype(float), rtol=0, atol=8 * ulp)
    # A value is known to an ulp of the center, however small the spread is beside it.
    np.testing.assert_allclose(found.std, whole.std(0).astype(float), rtol=1e-12, atol=8 * ulp)


def test_naive_sums_would_lose_the_spread() -> None:
    """Large means with a small spread: E[x^2] - E[x]^2 is off by far more than what it measures."""
    rng = np.random.default_rng(0)
    parts = [1e6 + 1e-3 * rng.standard_normal((400, 1)) for _ in range(50)]
    whole = np.concatenate(parts)
    naive = np.mean(whole**2) - np.mean(whole) ** 2
    exact = float(np.var(whole.astype(np.longdouble)))
    (std,) = merge([moments_of(part) for part in parts]).std
    assert abs(std**2 - exact) < 1e-6 * exact < abs(naive - exact)


def test_dimensions_are_put_side_by_side() -> None:
    values = np.random.default_rng(0).standard_normal((9, 5))
    assert beside([moments_of(values[:, :2]), moments_of(values[:, 2:])]) == moments_of(values)
