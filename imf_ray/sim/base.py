"""Interfaces of simulated tasks: an env with cameras and stages, and a scripted expert."""

from abc import abstractmethod
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from imf_ray.sim.array_types import FloatArray, Image

OVERVIEW_SIZE = (480, 640)
"""Height and width in pixels of the overview image."""


class SimEnv(gymnasium.Env[dict[str, Any], Any]):
    """A gymnasium env with cameras, stages and a definition of success.

    Observations: `qpos` (D,) float32; `qvel` (D,) float32 if the env has velocities; and, if made
    with `render_images=True`, `images` {camera: (H, W, 3) uint8 RGB}.

    `info` of `reset` and `step`: `stage` and `max_stage` (int, the highest of the episode),
    `success` (bool, sticky) and `poses` {object: (7,) xyz in m, quaternion wxyz}.
    """

    control_hz: int
    num_stages: int
    """The highest stage. Stages are counted from 0 (nothing reached yet)."""
    success_description: str
    """Definition of success in words, for records."""

    @property
    @abstractmethod
    def render_settings(self) -> dict[str, Any]:
        """Everything besides the state that an image depends on: `image_size` (height, width),
        `camera_names`, `shadows`, `multisampling`."""

    @abstractmethod
    def render_cameras(self) -> dict[str, Image]:
        """Render the policy's images (H, W, 3) uint8 RGB of the current state, by camera name.

        Works also if observations are made without images."""

    @abstractmethod
    def render_overview(self) -> Image:
        """Render an image (*OVERVIEW_SIZE, 3) of the current state for people.

        The camera is always the same."""

    @abstractmethod
    def ee_poses(self) -> FloatArray:
        """Return end-effector poses (arms, 7), left first: xyz in m, quaternion wxyz, world frame.

        (0, 7) if the task does not report them."""

    @abstractmethod
    def project_to_pixels(self, points: FloatArray) -> FloatArray:
        """Project world points (N, 3) in m into the overview image.

        Returns columns and rows (N, 2) in pixels; NaN for a point behind the camera.

        Raises:
            NotImplementedError: the camera of the task is unknown.
        """


class ScriptedExpert(Protocol):
    """A scripted expert, made for one env."""

    def reset(self) -> None:
        """Plan the episode; call it right after the env's reset."""

    def act(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the next action in joint space, and in end-effector space if the task has one."""
