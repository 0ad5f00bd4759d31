"""Offscreen pictures of named cameras."""

import mujoco
import numpy as np
from numpy.typing import NDArray

from imf_ray.sim import EGL_HELP

Image = NDArray[np.uint8]

MULTISAMPLES = 4  # samples per pixel when multisampling is on


class CameraRenderer:
    """Renders cameras of one model to RGB pictures.

    It belongs to the process and the thread that made it: never create one before a fork.
    Shadows and multisampling cost up to twenty times the rest on a software renderer.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        image_size: tuple[int, int],
        *,
        shadows: bool = False,
        multisampling: bool = False,
    ) -> None:
        """`image_size`: (height, width) in pixels. Sets the model's offscreen buffer to it.

        Raises RuntimeError when no OpenGL context can be made.
        """
        height, width = image_size
        model.vis.global_.offheight, model.vis.global_.offwidth = height, width
        model.vis.quality.offsamples = MULTISAMPLES if multisampling else 0
        try:
            self._renderer = mujoco.Renderer(model, height, width)
        except (ImportError, AttributeError) as error:
            raise RuntimeError(EGL_HELP) from error
        flags = self._renderer.scene.flags
        flags[int(mujoco.mjtRndFlag.mjRND_SHADOW)] = shadows
        flags[int(mujoco.mjtRndFlag.mjRND_REFLECTION)] = False

    def render(self, data: mujoco.MjData, camera: str) -> Image:
        """RGB picture (height, width, 3) of `data` as the named camera sees it."""
        self._renderer.update_scene(data, camera)
        return self._renderer.render()

    def close(self) -> None:
        """Frees the OpenGL context."""
        self._renderer.close()
