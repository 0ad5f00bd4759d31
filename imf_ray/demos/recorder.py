"""Records scripted demonstrations by running the expert of a task in its env."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

import imf_ray
from imf_ray.data.hdf5.writing import Episode, RecordingMetadata
from imf_ray.schema import TaskConfig
from imf_ray.sim.base import SimEnv
from imf_ray.sim.factory import check_images, make_env, make_expert


class DemoRecorder:
    """Runs the task's expert and records observations, actions and object poses.

    The expert acts in joint space, or in the action space of a task without joints. If the expert
    also returns end-effector actions, they are recorded in addition.

    Raises:
        UserError: the env cannot be made as configured, or the task has no expert.
    """

    def __init__(self, task: TaskConfig, camera_names: Sequence[str]) -> None:
        self._task = task
        kwargs = task.env_kwargs(camera_names) | {"action_space": "joint"}
        self._env = make_env(task.env_id, **kwargs)
        self._sim = cast(SimEnv, self._env.unwrapped)
        self._expert = make_expert(task.env_id, self._sim)

    def check_images(self) -> None:
        """Render once what is recorded.

        Raises:
            UserError: this machine cannot render.
        """
        check_images(self._task.env_id, self._env, cameras=True, overview=False)

    def close(self) -> None:
        """Close the env."""
        self._env.close()

    def record(self, seed: int, on_step: Callable[[], None] | None = None) -> Episode:
        """Record the whole episode of a seed. Its `attributes` say whether the expert succeeded.

        Args:
            on_step: called before each environment step. It may raise an exception to stop early.
        """
        observation, info = self._env.reset(seed=seed)
        self._expert.reset()
        observations: list[dict[str, Any]] = []
        poses: list[dict[str, np.ndarray]] = []
        actions, actions_ee, rewards = [], [], []
        done = False
        while not done:
            if on_step is not None:
                on_step()
            action, action_ee = self._expert.act()
            observations.append(observation)
            poses.append(info["poses"])
            actions.append(action)
            actions_ee.append(action_ee)
            observation, reward, terminated, truncated, info = self._env.step(action)
            rewards.append(float(reward))
            done = terminated or truncated
        images = [step["images"] for step in observations]
        return Episode(
            images={name: np.stack([frame[name] for frame in images]) for name in images[0]},
            qpos=np.stack([step["qpos"] for step in observations]),
            qvel=_stack([step.get("qvel") for step in observations]),
            action=np.stack(actions),
            action_ee=_stack(actions_ee),
            poses={name: np.stack([step[name] for step in poses]) for name in poses[0]},
            attributes=RecordingMetadata(
                task=self._task.env_id,
                action_space="joint",
                control_hz=self._sim.control_hz,
                camera_names=tuple(images[0]),
                seed=seed,
                success=bool(info["success"]),
                max_reward=max(rewards),
                shadows=self._task.shadows,
                multisampling=self._task.multisampling,
                version=imf_ray.__version__,
            ),
        )


def _stack(vectors: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Stack the vectors of all steps to (T, D). Return None if the task has no such vectors."""
    present = [vector for vector in vectors if vector is not None]
    return np.stack(present) if present else None
