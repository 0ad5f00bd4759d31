"""Offscreen pictures of named cameras."""

import importlib
import threading
import weakref
from contextlib import suppress

import mujoco
import numpy as np
from numpy.typing import NDArray

from imf_ray.sim import EGL_HELP

# Mesa's software renderer brings an LLVM, and so does triton, which ends the process (SIGSEGV) if
# it comes second; torch loads it late, when a trunk or an optimizer is made.
with suppress(ImportError):
    importlib.import_module("triton")

Image = NDArray[np.uint8]

Array = NDArray[np.float64]

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


_shared: weakref.WeakValueDictionary[tuple[object, ...], CameraRenderer] = (
    weakref.WeakValueDictionary()
)


def shared_renderer(
    model: mujoco.MjModel,
    image_size: tuple[int, int],
    *,
    shadows: bool = False,
    multisampling: bool = False,
) -> CameraRenderer:
    """The renderer of this thread for all worlds of one model; freed with its last user.

    A software renderer pays for every switch between OpenGL contexts: four worlds with a context
    each took 12 % longer for their pictures than with one.
    """
    key = (id(model), image_size, shadows, multisampling, threading.get_ident())
    renderer = _shared.get(key)
    if renderer is None:
        renderer = CameraRenderer(model, image_size, shadows=shadows, multisampling=multisampling)
        _shared[key] = renderer
    return renderer


def project_to_pixels(
    model: mujoco.MjModel, data: mujoco.MjData, camera: str, size: tuple[int, int], points: Array
) -> Array:
    """Where world points (N, 3) in m are in a picture of `size` (height, width).

    Columns and rows (N, 2) in pixels; the centre of the top left pixel is (0, 0). A point behind
    the camera is NaN. A pinhole whose axis goes through the middle of the picture; MuJoCo's cameras
    look along -z.
    """
    height, width = size
    view = data.camera(camera)
    focal = height / 2 / np.tan(np.radians(model.camera(camera).fovy.item()) / 2)
    right, up, backward = ((points - view.xpos) @ view.xmat.reshape(3, 3)).T
    depth = np.where(backward < 0, -backward, np.nan)
    middle = np.array([width - 1, height - 1]) / 2
    return middle + focal * np.column_stack([right / depth, -up / depth])
