"""gym-aloha's cube transfer as a `SimEnv`, and its scripted expert. Needs the extra `aloha`."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from imf_ray.config import load_config
from imf_ray.data.hdf5.layouts import QPOS
from imf_ray.data.index import build_index
from imf_ray.sim.base import OVERVIEW_SIZE, SimEnv
from imf_ray.sim.factory import make_env, make_expert
from tests.helpers.commands import run_command

pytest.importorskip("gym_aloha", reason="needs the extra aloha: make test-aloha")

OVERRIDES = (
    "task=aloha_transfer_cube",
    "agent.state_dim=14",
    "agent.action_dim=14",
    "data.camera_names=[top,angle]",
    "task.image_size=32",
)
HOLD: np.ndarray = np.tile([0.0, -0.96, 1.16, 0.0, -0.3, 0.0, 0.1], 2)
Make = Callable[..., gymnasium.Env[Any, Any]]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[gymnasium.Env[Any, Any]] = []

    def make_one(*overrides: str, render_images: bool = False) -> gymnasium.Env[Any, Any]:
        config = load_config([*OVERRIDES, *overrides])
        kwargs = config.task.env_kwargs(config.data.camera_names)
        made.append(make_env(config.task.env_id, **kwargs, render_images=render_images))
        return made[-1]

    yield make_one
    for env in made:
        env.close()


def _sim_env(env: gymnasium.Env[Any, Any]) -> Any:
    assert isinstance(env.unwrapped, SimEnv)
    return env.unwrapped


def _play(envs: Sequence[gymnasium.Env[Any, Any]], seeds: Sequence[int], steps: int) -> list[Any]:
    """Step the envs in turn; return the states, the physics state and the images of each."""
    experts = [make_expert("gym_aloha/AlohaTransferCube-v0", _sim_env(env)) for env in envs]
    states_of_envs: list[list[Any]] = []
    for env, expert, seed in zip(envs, experts, seeds, strict=True):
        states_of_envs.append([env.reset(seed=seed)[0]["qpos"]])
        expert.reset()
    for _ in range(steps):
        for env, expert, states in zip(envs, experts, states_of_envs, strict=True):
            states.append(env.step(expert.act()[0])[0]["qpos"])
    sim_envs = [_sim_env(env) for env in envs]
    return [
        (np.stack(states), env.data.qpos.copy(), env.render_cameras())
        for states, env in zip(states_of_envs, sim_envs, strict=True)
    ]


def test_a_seed_determines_the_episode_bitwise(make: Make) -> None:
    """gym-aloha keeps the start pose of the cube in a global that all its envs share."""
    separate = [_play([make()], [seed], steps=60)[0] for seed in (1, 2)]
    interleaved = _play([make(), make(render_images=True)], [1, 2], steps=60)
    for one, other in zip(separate, interleaved, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
        for camera in ("top", "angle"):
            np.testing.assert_array_equal(one[2][camera], other[2][camera])
    assert np.abs(separate[0][1][16:18] - separate[1][1][16:18]).max() > 0.01  # another cube pose


def test_images_have_the_requested_size_and_flags_and_are_rendered_on_demand(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(render_images=True)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    plain = observation["images"]["top"]
    assert plain.shape == (32, 32, 3) and plain.std() > 10
    shadowed = make("task.shadows=true", render_images=True)
    assert (shadowed.reset(seed=0)[0]["images"]["angle"] != observation["images"]["angle"]).any()

    def fail(*arguments: Any, **options: Any) -> None:
        raise AssertionError("rendered without need")

    no_images = make()
    monkeypatch.setattr("dm_control.mujoco.engine.Physics.render", fail)
    monkeypatch.setattr("imf_ray.sim.rendering.CameraRenderer.render", fail)
    no_images.reset(seed=0)
    no_images.step(HOLD)


def test_actions_are_joint_angles_and_episodes_have_400_steps(make: Make) -> None:
    env = make()
    observation, info = env.reset(seed=0)
    assert info["poses"]["cube"].shape == (7,) and not info["success"]
    np.testing.assert_allclose(observation["qpos"], HOLD, atol=2e-3)
    assert env.action_space.shape == (14,) and env.action_space.contains(np.float32(HOLD))
    target = HOLD + np.tile([1.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5], 2)  # outside Box(-1, 1)
    for step in range(400):
        observation, _, over, truncated, _ = env.step(target)
        assert not over and truncated == (
            step == 399
        )  # gym-aloha registers the env with a limit of 300
    np.testing.assert_allclose(observation["qpos"], target, atol=0.03)


@pytest.mark.parametrize("seed", [900_000, 900_001])
def test_the_expert_succeeds(make: Make, seed: int) -> None:
    env = make()
    sim_env = _sim_env(env)
    expert = make_expert("gym_aloha/AlohaTransferCube-v0", sim_env)
    env.reset(seed=seed)
    expert.reset()
    actions, stages, over = [], [], False
    while not over:
        action, end_effector = expert.act()
        _, _, _, over, info = env.step(action)
        actions.append(action)
        stages.append(info["stage"])
    assert end_effector is None and env.action_space.contains(action)
    assert info["success"] and stages[-1] == 4 and len(stages) == 400
    assert {1, 2} <= set(stages[: stages.index(4)])
    tools, cube = sim_env.ee_poses(), info["poses"]["cube"]
    assert np.linalg.norm(tools[0, :3] - cube[:3]) < 0.03  # the left hand has the cube
    assert np.linalg.norm(tools[1, :3] - cube[:3]) > 0.15  # the right hand is away
    speed = np.abs(np.diff(actions, axis=0)).max(axis=0) * sim_env.control_hz
    assert speed.reshape(2, 7)[:, :6].max() < 4  # rad/s: no wrist flips


def test_the_overview_shows_the_cube_at_its_projection(make: Make) -> None:
    env = make()
    _, info = env.reset(seed=0)
    overview = _sim_env(env).render_overview()
    assert overview.shape == (*OVERVIEW_SIZE, 3)
    pixels = _sim_env(env).project_to_pixels(info["poses"]["cube"][None, :3])
    column, row = np.rint(pixels[0]).astype(int)
    red, green, blue = overview[row, column].astype(int)
    assert red > 150 and max(green, blue) < 50


def test_an_unknown_camera_is_rejected(make: Make) -> None:
    with pytest.raises(ValueError, match=r"no camera 'above'; it has: .*front_close"):
        make("task.adapter.cameras={above: above}")


def test_collect_writes_a_data_set(tmp_path: Path) -> None:
    folder = f"data.dataset_dir={tmp_path}"
    arguments = (*OVERRIDES, folder, "collect.num_episodes=2", "cluster.include_dashboard=false")
    done = run_command("collect", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    index = build_index(load_config([*OVERRIDES, folder]))
    assert [episode.attributes["seed"] for episode in index.episodes] == [0, 1]
    for episode in index.episodes:
        assert episode.length == 400
        assert [len(episode.stats[name].mean) for name in (QPOS, "action")] == [14, 14]
        assert episode.action_spaces == ("joint",)
        assert episode.cameras == {"top": (32, 32), "angle": (32, 32)}
        assert episode.attributes["control_hz"] == 50 and episode.attributes["success"]
