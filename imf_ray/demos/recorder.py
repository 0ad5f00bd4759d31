"""Records what a scripted expert does in its environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

import imf_ray
from imf_ray.data.episodes import Episode, RecordingMetadata
from imf_ray.errors import UserError
from imf_ray.schema import TaskConfig
from imf_ray.sim.base import SimEnv, make_env
from imf_ray.sim.experts import make_expert


class DemoRecorder:
    """Plays the task's expert and keeps what it saw and did.

    The expert acts in joint space, or in the task's own; its end-effector actions are recorded
    beside where there are any.

    Raises:
        UserError: the task cannot be made as configured, or has no expert.
    """

    def __init__(self, task: TaskConfig, camera_names: Sequence[str]) -> None:
        self._task = task
        kwargs = task.env_kwargs(camera_names) | {"action_space": "joint"}
        try:
            self._env = make_env(task.env_id, **kwargs)
            self._world = cast(SimEnv, self._env.unwrapped)
            self._expert = make_expert(task.env_id, self._world)
        except ValueError as error:
            raise UserError(f"{error}.") from error

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()

    def record(self, seed: int) -> Episode:
        """The whole episode of that seed, successful or not (see its attributes)."""
        observation, info = self._env.reset(seed=seed)
        self._expert.reset()
        seen: list[dict[str, Any]] = []
        poses: list[dict[str, np.ndarray]] = []
        actions, actions_ee, rewards = [], [], []
        over = False
        while not over:
            joint, ee = self._expert.act()
            seen.append(observation)
            poses.append(info["poses"])
            actions.append(joint)
            actions_ee.append(ee)
            observation, reward, terminated, truncated, info = self._env.step(joint)
            rewards.append(float(reward))
            over = terminated or truncated
        images = [step["images"] for step in seen]
        return Episode(
            images={name: np.stack([frame[name] for frame in images]) for name in images[0]},
            qpos=np.stack([step["qpos"] for step in seen]),
            qvel=_stack([step.get("qvel") for step in seen]),
            action=np.stack(actions),
            action_ee=_stack(actions_ee),
            poses={name: np.stack([step[name] for step in poses]) for name in poses[0]},
            attributes=RecordingMetadata(
                task=self._task.env_id,
                action_space="joint",
                control_hz=self._world.control_hz,
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
    """The steps' vectors as (T, D), or None for a task without them."""
    given = [vector for vector in vectors if vector is not None]
    return np.stack(given) if given else None
