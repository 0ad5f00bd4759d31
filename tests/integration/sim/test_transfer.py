"""The transfer task: visibility of the cube, projection to pixels, and stages."""

import numpy as np
import pytest

from imf_ray.sim.bimanual import LIFT_CLEARANCE
from imf_ray.sim.tasks.transfer import CUBE_HALF_SIZE


def red_pixels(image):
    """Return a mask (H, W) of the pixels that show the cube."""
    red, green, blue = np.moveaxis(image.astype(int), -1, 0)
    return (red > 40) & (green < red / 3) & (blue < red / 3)


@pytest.mark.parametrize("camera", ["r_vis", "top", "front"])
def test_the_cube_is_visible_at_the_start(make_env, camera):
    env = make_env(camera_names=[camera])
    for seed in range(5):
        env.reset(seed=seed)
        assert red_pixels(env.render_cameras()[camera]).sum() >= 9


@pytest.mark.parametrize("x", [0.05, 0.25])
@pytest.mark.parametrize("y", [-0.1, 0.1])
def test_points_are_projected_to_their_pixels(make_env, x, y):
    env = make_env()
    pose = np.array([x, y, 0.35, 1.0, 0.0, 0.0, 0.0])
    env.reset(seed=0, options={"poses": {"cube": pose}})
    rows, columns = np.nonzero(red_pixels(env.render_overview()))
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    corners = env.project_to_pixels(pose[:3] + CUBE_HALF_SIZE * signs)
    top_left = np.array([columns.min(), rows.min()])
    bottom_right = np.array([columns.max(), rows.max()])
    assert np.array_equal(np.ceil(corners.min(axis=0)), top_left)
    assert np.array_equal(np.floor(corners.max(axis=0)), bottom_right)


def test_an_untouched_cube_in_the_air_has_stage_0(make_env):
    env = make_env()
    pose = [0.1, 0.0, 0.5, 1.0, 0.0, 0.0, 0.0]
    env.reset(seed=0, options={"poses": {"cube": pose}})
    _, reward, *_, info = env.step(np.zeros(16))
    assert reward == 0 and info["poses"]["cube"][2] > CUBE_HALF_SIZE + LIFT_CLEARANCE
