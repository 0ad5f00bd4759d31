"""All bimanual tasks: determinism, observations, actions, images, errors."""

from typing import cast

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from imf_ray.sim.base import OVERVIEW_SIZE, SimEnv
from imf_ray.sim.diana import READY_JOINTS
from imf_ray.sim.tasks.transfer import CUBE_HALF_SIZE

HOLD_STILL = np.column_stack([READY_JOINTS, np.ones(2)]).ravel().astype(np.float32)


def random_walk(env, seed, steps=40):
    """Return the states of an episode of small random moves around the ready pose."""
    noise = np.random.default_rng(seed)
    env.reset(seed=seed)
    states = [env.get_state()]
    for _ in range(steps):
        env.step(HOLD_STILL + noise.normal(0, 0.1, HOLD_STILL.size).astype(np.float32))
        states.append(env.get_state())
    return np.stack(states)


def test_same_seed_and_actions_give_bitwise_equal_states(make_env, kind):
    env = make_env(kind)
    first = random_walk(env, seed=3)
    assert np.array_equal(first, random_walk(env, seed=3))
    assert np.array_equal(first, random_walk(make_env(kind), seed=3))
    assert not np.array_equal(first, random_walk(env, seed=4))


def test_rendering_does_not_change_the_physics(make_env):
    with_images = make_env(render_images=True, image_size=32)
    assert np.array_equal(random_walk(make_env(), seed=5), random_walk(with_images, seed=5))


def test_rendering_on_demand_gives_the_pixels_of_the_observation(make_env):
    eager, lazy = make_env(render_images=True, image_size=(48, 64)), make_env(image_size=(48, 64))
    eager.reset(seed=1)
    assert "images" not in lazy.reset(seed=1)[0]
    observation, *_ = eager.step(HOLD_STILL)
    lazy.step(HOLD_STILL)
    before = lazy.get_state()
    images = lazy.render_cameras()
    assert np.array_equal(before, lazy.get_state())
    assert list(images) == ["r_vis", "top", "front"]
    for name, image in observation["images"].items():
        assert image.shape == (48, 64, 3) and image.dtype == np.uint8
        assert np.array_equal(image, images[name])
        assert np.array_equal(image, eager.render_cameras()[name])


def test_no_renderer_is_made_before_the_first_image(make_env, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("a renderer was made")

    monkeypatch.setattr("imf_ray.sim.bimanual.shared_renderer", fail)
    env = make_env()
    env.reset(seed=0)
    env.step(HOLD_STILL)
    with pytest.raises(AssertionError, match="a renderer was made"):
        env.render_cameras()


def test_render_flags_change_the_images_and_are_reported(make_env):
    plain, shaded = make_env(), make_env(shadows=True, multisampling=True)
    plain.reset(seed=0), shaded.reset(seed=0)
    assert not np.array_equal(plain.render_cameras()["top"], shaded.render_cameras()["top"])
    assert shaded.render_settings == {
        "image_size": (96, 96),
        "camera_names": ("r_vis", "top", "front"),
        "shadows": True,
        "multisampling": True,
    }


def test_the_overview_does_not_change_the_policys_images(make_env):
    with_overview, plain = make_env(image_size=32), make_env(image_size=32)
    with_overview.reset(seed=2), plain.reset(seed=2)
    assert with_overview.render_overview().shape == (*OVERVIEW_SIZE, 3)
    for _ in range(2):
        with_overview.step(HOLD_STILL), plain.step(HOLD_STILL)
        for name, image in with_overview.render_cameras().items():
            assert np.array_equal(image, plain.render_cameras()[name])
        with_overview.render_overview()
    assert np.array_equal(with_overview.get_state(), plain.get_state())


def test_a_point_behind_the_camera_is_projected_to_nan(make_env):
    env = make_env()
    env.reset(seed=0)
    pixels = env.project_to_pixels(np.array([[0.0, -2.0, 1.0], [0.0, 0.0, 0.0]]))
    assert np.isnan(pixels).tolist() == [[True, True], [False, False]]


def test_the_arms_start_at_the_ready_pose_and_follow_the_targets(make_env, kind):
    env = make_env(kind)
    observation, info = env.reset(seed=0)
    assert np.array_equal(observation["qpos"], HOLD_STILL)
    assert not observation["qvel"].any()
    assert info["stage"] == info["max_stage"] == 0 and info["success"] is False
    target = HOLD_STILL.copy()
    target[[0, 7, 10]] += [0.2, -0.5, -0.1]
    for _ in range(50):
        observation, *_ = env.step(target)
    assert np.allclose(observation["qpos"], target, atol=0.01)


def test_an_ee_action_of_the_current_pose_keeps_the_arms_still(make_env):
    env = make_env(action_space="ee")
    env.reset(seed=0)
    start = env.ee_poses()
    action = np.column_stack([start, np.ones(2)])
    action[:, 3:7] *= 2  # any length is accepted
    for _ in range(20):
        env.step(action.ravel())
    assert np.allclose(env.ee_poses(), start, atol=1e-3)


@pytest.mark.parametrize("action_space", ["joint", "ee"])
def test_targets_outside_the_limits_are_clipped(make_env, action_space):
    env = make_env(action_space=action_space)
    env.reset(seed=0)
    observation, *_ = env.step(np.full(16, 100.0, dtype=np.float32))
    assert np.isfinite(observation["qpos"]).all()
    low, high = env.model.actuator_ctrlrange.T
    assert (env.data.ctrl >= low).all() and (env.data.ctrl <= high).all()


def test_the_reset_option_poses_sets_the_start_poses(make_env):
    env = make_env()
    pose = np.array([0.1, 0.05, CUBE_HALF_SIZE, 1.0, 0.0, 0.0, 0.0])
    _, info = env.reset(seed=0, options={"poses": {"cube": pose}})
    assert np.array_equal(info["poses"]["cube"], pose)


@pytest.mark.parametrize(
    ("poses", "message"),
    [
        ({"ball": np.ones(7)}, "unknown object 'ball'; the choices are: cube"),
        ({"cube": np.ones(3)}, r"pose of cube must have shape \(7,\)"),
        ({"cube": np.zeros(7)}, "quaternion must not be zero"),
    ],
)
def test_invalid_poses_are_rejected(make_env, poses, message):
    with pytest.raises(ValueError, match=message):
        make_env().reset(options={"poses": poses})


@pytest.mark.parametrize("task", ["SimTransfer", "SimAirInsert"])
def test_gymnasium_accepts_the_env(task):
    env = gymnasium.make(f"imf_ray/{task}-v0", image_size=16, render_mode="rgb_array")
    assert env.spec is not None and env.spec.max_episode_steps == 400
    check_env(env.unwrapped)
    env.reset(seed=0)
    assert env.render().shape == (16, 16, 3)
    assert cast(SimEnv, env.unwrapped).control_hz == 50
    env.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"camera_names": ["wrist"]}, "camera_names: 'wrist'; the choices are: r_vis, top, front"),
        ({"action_space": "torque"}, "unknown action_space 'torque'; the choices are: joint, ee"),
        ({"render_mode": "human"}, "unknown render_mode 'human'"),
        ({"image_size": 0}, "image_size"),
        ({"image_size": (96, 96, 3)}, "image_size"),
    ],
)
def test_invalid_options_are_rejected(make_env, options, message):
    with pytest.raises(ValueError, match=message):
        make_env(**options)


def test_invalid_actions_are_rejected(make_env):
    env, ee_env = make_env(), make_env(action_space="ee")
    env.reset(seed=0), ee_env.reset(seed=0)
    with pytest.raises(ValueError, match=r"action must have shape \(16,\), got \(14,\)"):
        env.step(np.zeros(14))
    with pytest.raises(ValueError, match="action must be finite"):
        env.step(np.where(np.arange(16) == 3, np.nan, HOLD_STILL))
    with pytest.raises(ValueError, match="quaternion must not be zero"):
        ee_env.step(np.zeros(16))
