"""Records what a scripted expert does in its environment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import numpy as np

import imf_ray
from imf_ray.config import TaskConfig
from imf_ray.data.episodes import Episode, EpisodeAttributes
from imf_ray.errors import UserError
from imf_ray.sim.expert import TransferExpert
from imf_ray.sim.transfer import SimTransferEnv
from imf_ray.sim.world import make_world

EXPERTS = {"imf_ray/SimTransfer-v0": TransferExpert}


class Recorder:
    """Plays the task's expert and keeps what it saw and did.

    Actions are recorded in both action spaces; the expert acts in joint space.

    Raises:
        UserError: the task has no expert.
    """

    def __init__(self, task: TaskConfig, camera_names: Sequence[str]) -> None:
        if task.env_id not in EXPERTS:
            raise UserError(
                f"task.env_id={task.env_id} has no scripted expert; {', '.join(EXPERTS)} have one."
            )
        self._task = task
        kwargs = task.env_kwargs(camera_names) | {"action_space": "joint"}
        self._env = make_world(task.env_id, **kwargs)
        self._expert = EXPERTS[task.env_id](cast(SimTransferEnv, self._env.unwrapped))

    def record(self, seed: int) -> Episode:
        """The whole episode of that seed, successful or not (see its attributes)."""
        observation, info = self._env.reset(seed=seed)
        self._expert.reset()
        seen: list[dict[str, Any]] = []
        actions, actions_ee, rewards = [], [], []
        over = False
        while not over:
            joint, ee = self._expert.act()
            seen.append(observation)
            actions.append(joint)
            actions_ee.append(ee)
            observation, reward, terminated, truncated, info = self._env.step(joint)
            rewards.append(float(reward))
            over = terminated or truncated
        images = [step["images"] for step in seen]
        return Episode(
            images={name: np.stack([frame[name] for frame in images]) for name in images[0]},
            qpos=np.stack([step["qpos"] for step in seen]),
            qvel=np.stack([step["qvel"] for step in seen]),
            action=np.stack(actions),
            action_ee=np.stack(actions_ee),
            attributes=EpisodeAttributes(
                task=self._task.env_id,
                action_space="joint",
                control_hz=cast(SimTransferEnv, self._env.unwrapped).control_hz,
                camera_names=tuple(images[0]),
                seed=seed,
                success=bool(info["success"]),
                max_reward=max(rewards),
                shadows=self._task.shadows,
                multisampling=self._task.multisampling,
                version=imf_ray.__version__,
            ),
        )
