"""Recorded episodes: they can be replayed and recorded again without a difference."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from imf_ray.data.episodes import episode_path
from imf_ray.demos.recorder import DemoRecorder
from imf_ray.errors import UserError
from imf_ray.sim.factory import make_env
from tests.helpers.configs import tiny_config


def test_replaying_the_actions_reproduces_the_states_bitwise(demonstrations: Path) -> None:
    task = tiny_config(demonstrations).task
    env = make_env(task.env_id, **task.env_kwargs(["top"]))
    with h5py.File(episode_path(demonstrations, 1)) as file:
        observation, info = env.reset(seed=int(file.attrs["seed"]))
        for step, action in enumerate(file["action"]):
            np.testing.assert_array_equal(observation["qpos"], file["observations/qpos"][step])
            np.testing.assert_array_equal(observation["qvel"], file["observations/qvel"][step])
            np.testing.assert_array_equal(
                info["poses"]["cube"].astype(np.float32), file["observations/poses/cube"][step]
            )
            np.testing.assert_array_equal(
                observation["images"]["top"], file["observations/images/top"][step]
            )
            observation, _, _, _, info = env.step(action)
    assert info["success"]


def test_recording_a_seed_again_gives_the_same_episode(demonstrations: Path) -> None:
    config = tiny_config(demonstrations)
    episode = DemoRecorder(config.task, config.data.camera_names).record(seed=2)
    with h5py.File(episode_path(demonstrations, 2)) as file:
        np.testing.assert_array_equal(episode.action, file["action"])
        np.testing.assert_array_equal(episode.action_ee, file["action_ee"])
        np.testing.assert_array_equal(episode.images["front"], file["observations/images/front"])


@pytest.mark.parametrize(
    ("overrides", "camera", "message"),
    [
        ([], "wrist", "wrist"),
        (["task.control_hz=20"], "top", "runs at 50 Hz, but task.control_hz=20"),
        (["task.env_id=imf_ray/Nothing-v0"], "top", "task.env_id=imf_ray/Nothing-v0"),
        (["task.env_id=CartPole-v1"], "top", "needs task.adapter"),
    ],
)
def test_an_impossible_recording_is_refused(
    tmp_path: Path, overrides: list[str], camera: str, message: str
) -> None:
    config = tiny_config(tmp_path, *overrides)
    with pytest.raises(UserError, match=message):
        DemoRecorder(config.task, [camera])
