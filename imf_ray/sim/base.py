"""Interfaces of simulated tasks: an env with cameras and stages, and a scripted expert."""

from abc import abstractmethod
from typing import Any, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from imf_ray.sim.array_types import FloatArray, Image

OVERVIEW_SIZE, VIDEO_SIZE = (480, 640), (240, 320)
"""Height and width in pixels of overview images, and of those that are frames of a video."""


class SimEnv(gymnasium.Env[dict[str, Any], Any]):
    """A gymnasium env with cameras, stages and a definition of success.

    An observation has these keys:

    * `qpos` (D,) float32.
    * `qvel` (D,) float32, if the env has velocities.
    * `images` {camera: (H, W, 3) uint8 RGB}, if the env was made with `render_images=True`.

    The `info` of `reset` and `step` has these keys:

    * `stage`: int, the stage of the current state.
    * `max_stage`: int, the highest stage of the episode so far.
    * `success`: bool, True from the step at which the episode succeeds to its end.
    * `poses`: {object: (7,) xyz in m, quaternion wxyz}.
    """

    control_hz: int
    """Environment steps per simulated second."""
    num_stages: int
    """Number of the highest stage. Stage 0 means that nothing has been reached."""
    success_description: str
    """Definition of success in words, for evaluation records."""

    @property
    @abstractmethod
    def render_settings(self) -> dict[str, Any]:
        """Settings that images depend on, in addition to the state.

        The keys are `image_size` (height, width), `camera_names`, `shadows` and `multisampling`.
        """

    def load_rendering(self) -> None:
        """Load what the first image of the cameras needs, such as OpenGL, before an episode starts.

        By default, the first image loads it.

        Raises:
            RenderingError: no image can be rendered.
        """

    @abstractmethod
    def render_cameras(self) -> dict[str, Image]:
        """Render the images of the current state, {camera: (H, W, 3) uint8 RGB}.

        This also works if observations have no images.
        """

    @abstractmethod
    def render_overview(self, size: tuple[int, int] = OVERVIEW_SIZE) -> Image:
        """Render an image (*size, 3) of the current state for people to look at.

        The camera is the same for all images of a task. Its aspect ratio is that of OVERVIEW_SIZE.
        """

    @abstractmethod
    def ee_poses(self) -> FloatArray:
        """Return end-effector poses (arms, 7), left first: xyz in m, quaternion wxyz, world frame.

        The shape is (0, 7) if the task does not report end-effector poses.
        """

    @abstractmethod
    def project_to_pixels(self, points: FloatArray) -> FloatArray:
        """Project world points (N, 3) in m into the overview image.

        Returns columns and rows (N, 2) in pixels. A point behind the camera is NaN.

        Raises:
            NotImplementedError: the parameters of the task's camera are not known.
        """


class ScriptedExpert(Protocol):
    """A scripted expert for one env."""

    def reset(self) -> None:
        """Plan the episode. Call this method right after the env's `reset`."""

    def act(self) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Return the next action in joint space, and in end-effector space or None."""
