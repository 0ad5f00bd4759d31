"""What a simulated task offers to recorders, experts and judges beyond gymnasium's interface."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol, cast

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit
from numpy.typing import NDArray

from imf_ray.sim.rendering import Image

OVERVIEW_SIZE = (480, 640)
"""Height and width in pixels of the view for people."""

FloatArray = NDArray[np.float64]


class SimEnv(gymnasium.Env[dict[str, Any], Any]):
    """A task with cameras, stages and a rule of success.

    Observations: `qpos` (D,) float32, `qvel` (D,) float32 where there is one, and, if it was made
    with `render_images=True`, `images` {camera: (H, W, 3) uint8 RGB}.

    `info` of `reset` and `step`: `stage` and `max_stage` (int, the highest of the episode),
    `success` (bool, sticky) and `poses` {object: (7,) xyz in m, quaternion wxyz}.
    """

    control_hz: int
    num_stages: int
    """The highest stage; stages are counted from 0 (nothing reached yet)."""
    success_description: str
    """In words, for records."""

    @property
    @abstractmethod
    def render_settings(self) -> dict[str, Any]:
        """What a picture depends on besides the state: `image_size` (height, width),
        `camera_names`, `shadows`, `multisampling`."""

    @abstractmethod
    def render_cameras(self) -> dict[str, Image]:
        """Pictures (H, W, 3) uint8 RGB of the current state, by camera name: what the policy
        sees, whether or not the observations hold it."""

    @abstractmethod
    def view(self) -> Image:
        """A picture (*VIEW_SIZE, 3) of the current state for people; always the same camera."""

    @abstractmethod
    def ee_poses(self) -> FloatArray:
        """Tool poses (arms, 7), left first: xyz in m and quaternion wxyz in the world frame.

        (0, 7) for a task that does not tell."""

    @abstractmethod
    def project(self, points: FloatArray) -> FloatArray:
        """Where world points (N, 3) in m are in `view`: columns and rows (N, 2) in pixels; NaN for
        a point behind the camera.

        Raises NotImplementedError for a task whose camera is not known."""


class ScriptedExpert(Protocol):
    """A scripted expert, made for one world."""

    def reset(self) -> None:
        """Plans the episode; call it right after the world's reset."""

    def act(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """The next action in joint space, and in end-effector space where the task has one."""


def make_env(
    env_id: str,
    *,
    control_hz: int,
    max_episode_steps: int,
    adapter: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> gymnasium.Env[dict[str, Any], Any]:
    """The task `env_id` with its time limit; `.unwrapped` is the `SimEnv`.

    Args:
        control_hz: what the caller takes the world's rate to be.
        adapter: how an environment that is not ours becomes a world (see `imf_ray.sim.gym_adapter`).
        kwargs: the constructor's: `action_space`, `image_size`, `camera_names`, `shadows`,
            `multisampling`, `render_images`.

    Raises ValueError where the task cannot be made so, or runs at another rate.
    """
    if adapter is not None:
        from imf_ray.sim.gym_adapter import adapt  # it stands on this module

        world: gymnasium.Env[dict[str, Any], Any] = TimeLimit(
            adapt(env_id, adapter, control_hz=control_hz, **kwargs), max_episode_steps
        )
    else:
        try:
            world = gymnasium.make(
                env_id, max_episode_steps=max_episode_steps, disable_env_checker=True, **kwargs
            )
        except (gymnasium.error.UnregisteredEnv, TypeError) as error:
            raise ValueError(
                f"task.env_id={env_id} cannot be made: {str(error).rstrip('.')}. An "
                "environment that is not ours needs task.adapter (docs/worlds.md)"
            ) from error
    own_rate = cast(SimEnv, world.unwrapped).control_hz
    if own_rate != control_hz:
        raise ValueError(
            f"{env_id} runs at {own_rate} Hz, task.control_hz={control_hz}: set "
            f"task.control_hz={own_rate}"
        )
    return world
