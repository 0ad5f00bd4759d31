"""Environments of other packages, adapted by a YAML file."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from imf_ray.config import load_config
from imf_ray.sim.base import OVERVIEW_SIZE, SimEnv
from imf_ray.sim.factory import make_env
from imf_ray.sim.gym_adapter import resize

YAML = """
env_id: imf_ray_tests/Point-v0
image_size: 4
control_hz: 10
max_episode_steps: 20
adapter:
  module: tests.helpers.point_env  # registers it
  install: pip install point-env
  kwargs: {speed: 0.2}
  cameras: {wide: camera.wide}
  qpos: [robot.target, robot.position, steps]
  qvel: [robot.position]
  action_scaling: box
  progress: info.goal.near
  stages: [1]
"""
SPEED = 0.2


def _make(
    folder: Path, *overrides: str, camera: str = "wide", render_images: bool = True
) -> gymnasium.Env[Any, Any]:
    path = folder / "point.yaml"
    path.write_text(YAML)
    task = load_config([f"task={path}", *overrides]).task
    return make_env(task.env_id, **task.env_kwargs([camera]), render_images=render_images)


def _sim_env(env: gymnasium.Env[Any, Any]) -> SimEnv:
    assert isinstance(env.unwrapped, SimEnv)
    return env.unwrapped


def _towards(observation: dict[str, Any]) -> np.ndarray:
    """Return the action, scaled to [-1, 1], that moves the point to the target."""
    step = observation["qpos"][:2] - observation["qpos"][2:4]
    return np.clip([step[0] / SPEED, step[1] / SPEED - 1], -1.0, 1.0)


def test_a_yaml_file_adapts_the_env(tmp_path: Path) -> None:
    env = _make(tmp_path)
    observation, info = env.reset(seed=3)
    assert env.observation_space.contains(observation)
    assert info == {"stage": 0, "max_stage": 0, "success": False, "poses": {}}
    observation, *_ = env.step(np.array([1.0, -1.0]))  # upper and lower bound of its Box
    np.testing.assert_allclose(observation["qpos"][2:], [SPEED, 0.0, 1.0], atol=1e-7)
    np.testing.assert_allclose(observation["qvel"], [SPEED, 0.0], atol=1e-7)
    # One of 16 columns is bright, which is a quarter of the first of the four resized columns.
    assert observation["images"]["wide"].shape == (4, 4, 3)
    assert (observation["images"]["wide"][:, 0] == 62).all()
    assert not observation["images"]["wide"][:, 1:].any()
    assert _sim_env(env).render_settings["image_size"] == (4, 4)
    assert _sim_env(env).success_description == "info.goal.near reaches 1"


def test_success_is_the_last_stage_and_ends_the_episode(tmp_path: Path) -> None:
    env = _make(tmp_path)
    observation, _ = env.reset(seed=0)
    over = truncated = False
    while not (over or truncated):
        observation, _, over, truncated, info = env.step(_towards(observation))
    assert over and info["success"] and info["stage"] == _sim_env(env).num_stages == 1


def test_only_the_time_limit_of_the_task_applies(tmp_path: Path) -> None:
    env = _make(tmp_path, "task.adapter.ignore_termination=true")
    observation, _ = env.reset(seed=0)
    for step in range(20):  # the env is registered with a limit of 5
        towards = _towards(observation) if step < 10 else [-1.0, 1.0]
        observation, _, over, truncated, info = env.step(towards)
        assert not over and truncated == (step == 19)
    assert info["stage"] == 0 and info["max_stage"] == 1 and info["success"]  # it stays set


def test_the_stage_counts_the_thresholds_reached(tmp_path: Path) -> None:
    env = _make(
        tmp_path,
        "task.adapter.progress_signal=reward",
        "task.adapter.stage_thresholds=[-0.6,-0.3,-0.1]",
    )
    observation, _ = env.reset(seed=0)
    stages, distances = [], []
    for _ in range(10):
        observation, reward, over, _, info = env.step(_towards(observation))
        stages.append(info["stage"])
        distances.append(-reward)
        if over:
            break
    assert stages == [sum(d <= s for s in (0.6, 0.3, 0.1)) for d in distances]
    assert stages[-1] == 3


def test_a_seed_determines_the_episode_and_images_are_rendered_on_demand(tmp_path: Path) -> None:
    eager, lazy = _make(tmp_path), _make(tmp_path, render_images=False)
    with_images, _ = eager.reset(seed=5)
    without, _ = lazy.reset(seed=5)
    for _ in range(4):
        with_images, *_ = eager.step(np.array([0.3, 0.2]))
        without, *_ = lazy.step(np.array([0.3, 0.2]))
    np.testing.assert_array_equal(with_images["qpos"], without["qpos"])
    assert "images" not in without and set(vars(lazy.observation_space)["spaces"]) == {
        "qpos",
        "qvel",
    }
    images = _sim_env(lazy).render_cameras()
    np.testing.assert_array_equal(images["wide"], with_images["images"]["wide"])


def test_array_observations_and_images_from_render_are_adapted(tmp_path: Path) -> None:
    options = (
        "task.adapter.kwargs={flat: true, render_mode: rgb_array}",
        "task.adapter.cameras={wide: render()}",
        "task.adapter.qpos=[.]",
        "task.adapter.qvel=[]",
    )
    env = _make(tmp_path, *options)
    observation, _ = env.reset(seed=0)
    assert not observation["images"]["wide"].any()
    observation, *_ = env.step(np.zeros(2))
    assert observation["images"]["wide"].any()
    np.testing.assert_allclose(observation["qpos"], [0.0, SPEED])


def test_an_env_of_gymnasium_needs_no_code(tmp_path: Path) -> None:
    path = tmp_path / "reacher.yaml"
    path.write_text(
        "{env_id: Reacher-v5, image_size: 32, adapter: {cameras: {top: render()}, qpos: [.],"
        "kwargs: {render_mode: rgb_array, width: 64, height: 64}, stages: [-0.02]}}"
    )
    task = load_config([f"task={path}"]).task
    env = make_env(task.env_id, **task.env_kwargs(["top"]))
    env.reset(seed=0)
    observation, *_, info = env.step(env.action_space.sample())
    env.close()
    assert env.observation_space.contains(observation) and observation["qpos"].shape == (10,)
    assert observation["images"]["top"].std() > 1 and not info["success"]


def test_the_overview_has_a_fixed_size_and_projection_is_not_implemented(tmp_path: Path) -> None:
    env = _make(tmp_path)
    env.reset(seed=0)
    env.step(np.zeros(2))
    overview = _sim_env(env).render_overview()
    assert overview.shape == (*OVERVIEW_SIZE, 3)  # 12 x 16 has the same aspect ratio
    np.testing.assert_array_equal(overview[:, :40], 250)
    assert _sim_env(env).ee_poses().shape == (0, 7)
    with pytest.raises(NotImplementedError):
        _sim_env(env).project_to_pixels(np.zeros((1, 3)))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["task.adapter.qpos=[robot.pos]"], r"no 'robot.pos'; it has: .*robot.position"),
        (["task.adapter.qpos=[robot]"], r"no 'robot'; it has: .*robot.position"),
        (["task.adapter.cameras={wide: camera.left}"], r"no 'camera.left'; it has: camera.depth"),
        (["task.adapter.cameras={wide: render()}"], "render_mode: rgb_array"),
        (["task.adapter.module=no_such_env"], "'no_such_env'; install it with: pip install point"),
        (
            ["task.adapter.env_class=tests.helpers.point_env:PointEnv"],
            "must be a class derived from AdaptedEnv",
        ),
        (["task.adapter.kwargs={speeed: 1}"], "do not fit .*speeed"),
        (["task.adapter.kwargs={speed: .inf}"], "needs finite bounds"),
        (["task.env_id=imf_ray_tests/Line-v0"], "task.env_id=imf_ray_tests/Line-v0"),
        (["task.control_hz=50"], "runs at 10 Hz, but task.control_hz=50. Set task.control_hz=10"),
        (["task.action_space=ee"], "task.action_space=joint"),
    ],
)
def test_errors_name_the_option(tmp_path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _make(tmp_path, *overrides)


def test_cameras_of_the_data_must_be_in_the_yaml(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown camera 'top'.*; task.adapter.cameras has: wide"):
        _make(tmp_path, camera="top")


def test_errors_in_an_episode_name_the_key(tmp_path: Path) -> None:
    env = _make(tmp_path, "task.adapter.cameras={wide: camera.depth}")
    with pytest.raises(ValueError, match=r"'camera.depth' is float32\(12, 16\), not uint8"):
        env.reset(seed=0)
    env = _make(tmp_path, "task.adapter.progress_signal=info.is_success")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"no 'info.is_success'; it has: .*info.goal.near"):
        env.step(np.zeros(2))
    for action in (np.zeros(3), np.array([0.0, np.nan])):
        with pytest.raises(ValueError, match="finite with shape"):
            env.step(action)


def test_resize_averages_areas() -> None:
    image = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    blocks = image.reshape(2, 3, 3, 3, 3).mean(axis=(1, 3))
    np.testing.assert_array_equal(resize(image, (2, 3)), np.rint(blocks))
    np.testing.assert_array_equal(resize(resize(image, (12, 18)), (6, 9)), image)
    even = np.full((7, 5, 3), 93, np.uint8)
    np.testing.assert_array_equal(resize(even, (4, 3)), 93)
