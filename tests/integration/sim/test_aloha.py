"""gym-aloha's transfer of a cube as a world, and its scripted expert (the extra `aloha`)."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from imf_ray.config import load_config
from imf_ray.data.index import build_index
from imf_ray.sim.base import OVERVIEW_SIZE, SimEnv, make_env
from imf_ray.sim.experts import make_expert
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


def _world(env: gymnasium.Env[Any, Any]) -> Any:
    assert isinstance(env.unwrapped, SimEnv)
    return env.unwrapped


def _play(envs: Sequence[gymnasium.Env[Any, Any]], seeds: Sequence[int], steps: int) -> list[Any]:
    """Step the environments in turn; the observations, the physics and the pictures of each."""
    experts = [make_expert("gym_aloha/AlohaTransferCube-v0", _world(env)) for env in envs]
    seen: list[list[Any]] = []
    for env, expert, seed in zip(envs, experts, seeds, strict=True):
        seen.append([env.reset(seed=seed)[0]["qpos"]])
        expert.reset()
    for _ in range(steps):
        for env, expert, observations in zip(envs, experts, seen, strict=True):
            observations.append(env.step(expert.act()[0])[0]["qpos"])
    worlds = [_world(env) for env in envs]
    return [
        (np.stack(observations), world.data.qpos.copy(), world.render_cameras())
        for observations, world in zip(seen, worlds, strict=True)
    ]


def test_the_seed_is_the_episode_bit_for_bit(make: Make) -> None:
    """Where the cube starts is a global of gym-aloha, which its environments share."""
    alone = [_play([make()], [seed], steps=60)[0] for seed in (1, 2)]
    together = _play([make(), make(render_images=True)], [1, 2], steps=60)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one[0], other[0])
        np.testing.assert_array_equal(one[1], other[1])
        for camera in ("top", "angle"):
            np.testing.assert_array_equal(one[2][camera], other[2][camera])
    assert np.abs(alone[0][1][16:18] - alone[1][1][16:18]).max() > 0.01  # another cube


def test_pictures_have_the_wanted_size_and_flags_and_are_made_on_demand(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(render_images=True)
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    plain = observation["images"]["top"]
    assert plain.shape == (32, 32, 3) and plain.std() > 10
    shadowed = make("task.shadows=true", render_images=True)
    assert (shadowed.reset(seed=0)[0]["images"]["angle"] != observation["images"]["angle"]).any()

    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError("nobody looks")

    blind = make()
    monkeypatch.setattr("dm_control.mujoco.engine.Physics.render", refuse)
    monkeypatch.setattr("imf_ray.sim.rendering.CameraRenderer.render", refuse)
    blind.reset(seed=0)
    blind.step(HOLD)


def test_actions_are_joint_angles_and_episodes_have_400_steps(make: Make) -> None:
    env = make()
    observation, info = env.reset(seed=0)
    assert info["poses"]["cube"].shape == (7,) and not info["success"]
    np.testing.assert_allclose(observation["qpos"], HOLD, atol=2e-3)
    assert env.action_space.shape == (14,) and env.action_space.contains(np.float32(HOLD))
    elsewhere = HOLD + np.tile([1.3, 0.0, 0.0, 0.0, 0.0, 0.0, 0.5], 2)  # beyond Box(-1, 1)
    for step in range(400):
        observation, _, over, truncated, _ = env.step(elsewhere)
        assert not over and truncated == (step == 399)  # it was registered with 300
    np.testing.assert_allclose(observation["qpos"], elsewhere, atol=0.03)


@pytest.mark.parametrize("seed", [900_000, 900_001])
def test_the_expert_hands_the_cube_over(make: Make, seed: int) -> None:
    env = make()
    world = _world(env)
    expert = make_expert("gym_aloha/AlohaTransferCube-v0", world)
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
    tools, cube = world.ee_poses(), info["poses"]["cube"]
    assert np.linalg.norm(tools[0, :3] - cube[:3]) < 0.03  # in the left hand,
    assert np.linalg.norm(tools[1, :3] - cube[:3]) > 0.15  # the right one is away
    speed = np.abs(np.diff(actions, axis=0)).max(axis=0) * world.control_hz
    assert speed.reshape(2, 7)[:, :6].max() < 4  # rad/s: no wrist flips


def test_the_view_shows_the_cube_where_it_is_projected(make: Make) -> None:
    env = make()
    _, info = env.reset(seed=0)
    view = _world(env).view()
    assert view.shape == (*OVERVIEW_SIZE, 3)
    column, row = np.rint(_world(env).project(info["poses"]["cube"][None, :3])[0]).astype(int)
    red, green, blue = view[row, column].astype(int)
    assert red > 150 and max(green, blue) < 50


def test_its_cameras_are_the_model_s(make: Make) -> None:
    with pytest.raises(ValueError, match=r"no camera 'above'; it has: .*front_close"):
        make("task.adapter.cameras={above: above}")


def test_collecting_gives_a_data_set(tmp_path: Path) -> None:
    folder = f"data.dataset_dir={tmp_path}"
    arguments = (*OVERRIDES, folder, "collect.num_episodes=2", "cluster.include_dashboard=false")
    done = run_command("collect", *arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    index = build_index(load_config([*OVERRIDES, folder]))
    assert [episode.attributes["seed"] for episode in index.episodes] == [0, 1]
    for episode in index.episodes:
        assert episode.length == 400 and episode.state_dim == episode.action_dim == 14
        assert episode.action_spaces == ("joint",)
        assert episode.cameras == {"top": (32, 32), "angle": (32, 32)}
        assert episode.attributes["control_hz"] == 50 and episode.attributes["success"]
