"""Random numbers keyed by sample."""

import numpy as np

from imf_ray.data.draws import sample_draws


def test_draws_depend_on_the_sample_alone() -> None:
    ids = np.array([7, 3, 11])
    together = sample_draws(1, 2, ids, (4, 3))
    for place, sample in enumerate(ids):
        alone = sample_draws(1, 2, np.array([sample]), (4, 3))
        np.testing.assert_array_equal(alone["noise"][0], together["noise"][place])
        np.testing.assert_array_equal(alone["time_uniforms"][0], together["time_uniforms"][place])


def test_draws_differ_between_samples_epochs_and_seeds() -> None:
    base = sample_draws(1, 2, np.array([5, 6]), (4, 3))["noise"]
    assert not np.allclose(base[0], base[1])
    assert not np.allclose(base, sample_draws(1, 3, np.array([5, 6]), (4, 3))["noise"])
    assert not np.allclose(base, sample_draws(2, 2, np.array([5, 6]), (4, 3))["noise"])


def test_draws_have_the_right_distribution() -> None:
    draws = sample_draws(0, 0, np.arange(2000), (2, 2))
    assert abs(draws["noise"].mean()) < 0.05 and abs(draws["noise"].std() - 1) < 0.05
    assert abs(draws["time_uniforms"].mean() - 0.5) < 0.03
    assert draws["time_uniforms"].min() > 0.0 and draws["time_uniforms"].max() < 1.0
