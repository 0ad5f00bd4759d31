"""Renders the cameras of a model offscreen, and projects points into their images."""

import threading
import warnings
import weakref

import numpy as np

from imf_ray.sim.array_types import FloatArray, Image
from imf_ray.sim.headless import load_opengl, mujoco
from imf_ray.sim.rendering_errors import RenderingError, explain

MULTISAMPLES = 4
"""Number of samples per pixel if multisampling is on."""


class CameraRenderer:
    """Renders cameras of one model to RGB images.

    A renderer can only be used in the process and the thread that made it. Do not make one before a
    fork. With a software renderer, shadows and multisampling take up to twenty times as long as the
    rest.
    """

    def __init__(
        self,
        model: mujoco.MjModel,
        image_size: tuple[int, int],
        *,
        shadows: bool = False,
        multisampling: bool = False,
    ) -> None:
        """Make a renderer for images of `image_size` (height, width) in pixels.

        This also sets the size of the offscreen buffer in `model`.

        Raises:
            RenderingError: no OpenGL context can be made.
        """
        height, width = image_size
        model.vis.global_.offheight, model.vis.global_.offwidth = height, width
        model.vis.quality.offsamples = MULTISAMPLES if multisampling else 0
        self._renderer = _make_mujoco_renderer(model, height, width)
        flags = self._renderer.scene.flags
        flags[int(mujoco.mjtRndFlag.mjRND_SHADOW)] = shadows
        flags[int(mujoco.mjtRndFlag.mjRND_REFLECTION)] = False

    def render(self, data: mujoco.MjData, camera: str) -> Image:
        """Render the image (height, width, 3) uint8 RGB of a camera, given by its name."""
        self._renderer.update_scene(data, camera)
        return self._renderer.render()

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()


_failures: list[RenderingError] = []
"""The error of the first renderer that could not be made in this process."""


def _make_mujoco_renderer(model: mujoco.MjModel, height: int, width: int) -> mujoco.Renderer:
    if _failures:  # a second attempt with GLFW would end the process
        raise _failures[0]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # GLFW warns of what the error says
            load_opengl()
            return mujoco.Renderer(model, height, width)
    except Exception as error:  # OpenGL libraries raise errors of many types
        _failures.append(explain(error))
        raise _failures[0] from error


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
    """Return the renderer that all envs of one model share in this thread.

    It is freed when the last env drops it. Sharing avoids switches between OpenGL contexts, which
    are slow with a software renderer. Four envs with separate contexts took 12 % longer to render
    than four envs that share one.
    """
    key = (id(model), image_size, shadows, multisampling, threading.get_ident())
    renderer = _shared.get(key)
    if renderer is None:
        renderer = CameraRenderer(model, image_size, shadows=shadows, multisampling=multisampling)
        _shared[key] = renderer
    return renderer


def project_to_pixels(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    camera: str,
    image_size: tuple[int, int],
    points: FloatArray,
) -> FloatArray:
    """Project world points (N, 3) in m into a camera's image of `image_size` (height, width).

    Returns columns and rows (N, 2) in pixels. The centre of the top left pixel is (0, 0). A point
    behind the camera is NaN. The camera is a pinhole camera whose axis goes through the centre of
    the image. MuJoCo's cameras look along -z.
    """
    height, width = image_size
    pose = data.camera(camera)
    focal = height / 2 / np.tan(np.radians(model.camera(camera).fovy.item()) / 2)
    right, up, backward = ((points - pose.xpos) @ pose.xmat.reshape(3, 3)).T
    depth = np.where(backward < 0, -backward, np.nan)
    center = np.array([width - 1, height - 1]) / 2
    return center + focal * np.column_stack([right / depth, -up / depth])
