"""Random numbers keyed by (seed, epoch, sample id)."""

import numpy as np

from imf_ray.data.sample_rng import crop_offsets, sample_noise_and_uniforms


def test_noise_depends_only_on_the_sample() -> None:
    ids = np.array([7, 3, 11])
    together = sample_noise_and_uniforms(1, 2, ids, (4, 3))
    for index, sample in enumerate(ids):
        alone = sample_noise_and_uniforms(1, 2, np.array([sample]), (4, 3))
        np.testing.assert_array_equal(alone["noise"][0], together["noise"][index])
        np.testing.assert_array_equal(alone["time_uniforms"][0], together["time_uniforms"][index])


def test_noise_differs_between_samples_epochs_and_seeds() -> None:
    base = sample_noise_and_uniforms(1, 2, np.array([5, 6]), (4, 3))["noise"]
    assert not np.allclose(base[0], base[1])
    assert not np.allclose(base, sample_noise_and_uniforms(1, 3, np.array([5, 6]), (4, 3))["noise"])
    assert not np.allclose(base, sample_noise_and_uniforms(2, 2, np.array([5, 6]), (4, 3))["noise"])


def test_noise_has_the_right_distribution() -> None:
    draws = sample_noise_and_uniforms(0, 0, np.arange(2000), (2, 2))
    assert abs(draws["noise"].mean()) < 0.05 and abs(draws["noise"].std() - 1) < 0.05
    assert abs(draws["time_uniforms"].mean() - 0.5) < 0.03
    assert draws["time_uniforms"].min() > 0.0 and draws["time_uniforms"].max() < 1.0


def test_the_first_draws_do_not_depend_on_their_number() -> None:
    ids = np.array([7, 3])
    one, two, three = (sample_noise_and_uniforms(1, 2, ids, (4, 3), draws) for draws in (1, 2, 3))
    assert three["noise"].shape == (2, 3, 4, 3) and three["time_uniforms"].shape == (2, 3, 3)
    for key in ("noise", "time_uniforms"):
        np.testing.assert_array_equal(three[key][:, 0], one[key])
        np.testing.assert_array_equal(three[key][:, :2], two[key])
        assert not np.allclose(three[key][:, 1], three[key][:, 2])


def test_crops_depend_only_on_the_sample() -> None:
    ids = np.array([7, 3, 11])
    together = crop_offsets(1, 2, ids, cameras=3)
    assert together.shape == (3, 3, 2) and together.min() >= 0.0 and together.max() < 1.0
    np.testing.assert_array_equal(crop_offsets(1, 2, ids[1:2], cameras=3)[0], together[1])
    assert not np.allclose(crop_offsets(1, 3, ids, cameras=3), together)
    # Crops have a random stream of their own.
    uniforms = sample_noise_and_uniforms(1, 2, ids, (0, 0))["time_uniforms"]
    assert not np.allclose(uniforms[:, :2], together[:, 0])
