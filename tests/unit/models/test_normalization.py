"""Normalization to the network's scale and back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from imf_ray.models.normalization import (
    EE_QUATERNION_SLICES,
    ImageNormalizer,
    Normalizer,
    join_pose_stats,
)

DATA = arrays(np.float32, (8, 4), elements=st.floats(-100, 100, width=32))


def stats_of(data: np.ndarray) -> dict[str, np.ndarray]:
    return {name: getattr(data, name)(axis=0) for name in ("min", "max", "mean", "std")}


@settings(max_examples=40)
@given(data=DATA, mode=st.sampled_from(["min_max", "mean_std", "identity"]))
def test_round_trip(data: np.ndarray, mode: str) -> None:
    normalizer = Normalizer(4, mode, stats_of(data))
    x = torch.from_numpy(data)
    torch.testing.assert_close(
        normalizer.unnormalize(normalizer.normalize(x)), x, rtol=1e-4, atol=1e-4
    )


@settings(max_examples=40)
@given(data=DATA)
def test_min_max_ends_at_one(data: np.ndarray) -> None:
    y = Normalizer(4, "min_max", stats_of(data)).normalize(torch.from_numpy(data))
    assert y.abs().max() <= 1.001
    varies = torch.from_numpy(np.ptp(data, axis=0) > 1e-2)
    torch.testing.assert_close(y.amax(0)[varies], torch.ones(int(varies.sum())), atol=1e-2, rtol=0)


@pytest.mark.parametrize("mode", ["min_max", "mean_std"])
def test_constant_dimension_is_centred_and_not_scaled(mode: str) -> None:
    data = np.stack((np.full(8, 3.0), np.linspace(0, 1, 8)), axis=1)
    y = Normalizer(2, mode, stats_of(data)).normalize(torch.tensor([[3.0, 0.5], [3.25, 0.5]]))
    torch.testing.assert_close(y, torch.tensor([[0.0, 0.0], [0.25, 0.0]]))


def test_mean_std() -> None:
    data = np.random.default_rng(0).normal(5, 3, (100, 2))
    y = Normalizer(2, "mean_std", stats_of(data)).normalize(torch.from_numpy(data).float())
    torch.testing.assert_close(y.mean(0), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(2))


def test_quaternions_keep_their_scale_and_change_hemisphere() -> None:
    data = np.random.default_rng(0).normal(2, 3, (50, 16))
    normalizer = Normalizer(16, "min_max", stats_of(data), EE_QUATERNION_SLICES)
    action = torch.from_numpy(data).float()
    for quaternion in EE_QUATERNION_SLICES:
        action[:, quaternion] /= action[:, quaternion].norm(dim=-1, keepdim=True)
    y = normalizer.normalize(action)
    back = normalizer.unnormalize(y * 1.3)
    for quaternion in EE_QUATERNION_SLICES:
        center = normalizer.mean[quaternion]
        sign = torch.where(action[:, quaternion] @ center < 0, -1.0, 1.0)[:, None]
        torch.testing.assert_close(y[:, quaternion], sign * action[:, quaternion])
        torch.testing.assert_close(back[:, quaternion], sign * action[:, quaternion])
        assert (sign < 0).any()


def test_rotations_near_w_zero_are_not_split() -> None:
    w = np.linspace(-0.1, 0.1, 21)
    down = np.stack((w, 0 * w, np.sqrt(1 - w**2), 0 * w), axis=1)  # a tool pointing down
    normalizer = Normalizer(4, "min_max", stats_of(down), (slice(0, 4),))
    quaternions = torch.from_numpy(down).float()
    torch.testing.assert_close(normalizer.normalize(quaternions), quaternions)
    torch.testing.assert_close(normalizer.normalize(-quaternions), quaternions)


def test_statistics_are_in_the_state_dict() -> None:
    data = np.random.default_rng(0).normal(size=(10, 3))
    trained, fresh = Normalizer(3, "min_max", stats_of(data)), Normalizer(3)
    x = torch.randn(5, 3)
    torch.testing.assert_close(fresh.normalize(x), x)
    fresh.load_state_dict(trained.state_dict())
    assert torch.equal(fresh.normalize(x), trained.normalize(x))
    assert fresh.statistics().keys() == {"min", "max", "mean", "std"}


def test_images_are_normalized_and_channels_come_first() -> None:
    images = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    images[..., 0] = 255
    y = ImageNormalizer()(images)
    assert y.shape == (2, 3, 4, 5)
    assert y[0, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229)
    assert y[0, 2, 0, 0].item() == pytest.approx(-0.406 / 0.225)
    with pytest.raises(ValueError, match="pass uint8"):
        ImageNormalizer()(images.float())


def test_bad_arguments_are_refused() -> None:
    stats = stats_of(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="choose one of min_max"):
        Normalizer(3, "minmax")
    with pytest.raises(ValueError, match="lack 'std'"):
        Normalizer(3, stats={k: v for k, v in stats.items() if k != "std"})
    with pytest.raises(ValueError, match=r"provide \(4,\)"):
        Normalizer(4, stats=stats)
    with pytest.raises(ValueError, match="finite"):
        Normalizer(3, stats=stats | {"max": [0, 0, float("nan")]})


def test_missing_statistics_of_a_part_are_named() -> None:
    with pytest.raises(ValueError, match="stats lack 'min'"):
        join_pose_stats({}, [], first="qpos")
    values = {name: torch.zeros(6) for name in ("min", "max", "mean", "std")}
    with pytest.raises(ValueError, match=r"shape \(6,\); provide \(7,\)"):
        join_pose_stats({"object_poses": {"cube": values}}, ["cube"])
