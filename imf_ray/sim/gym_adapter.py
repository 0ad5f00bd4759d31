"""Adapts gymnasium environments of other packages to `SimEnv`.

A description, the option group `task.adapter`, says where the data of the environment is.
`AdapterConfig` documents its keys. Paths in an observation or an `info` are dotted, for example
`pixels.top`. The path `.` stands for the whole observation.
"""

import importlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from imf_ray.sim import headless
from imf_ray.sim.array_types import FloatArray, Image
from imf_ray.sim.base import OVERVIEW_SIZE, SimEnv
from imf_ray.sim.rendering_errors import opengl_errors_explained

RENDER = "render()"
"""Image source for the images of the env's `render`, which is called on demand."""


def make_adapted_env(env_id: str, adapter: Mapping[str, Any], **kwargs: Any) -> "AdaptedEnv":
    """Make the environment `env_id` and wrap it in the class `adapter["env_class"]`.

    Raises:
        ValueError: a module is missing, or the cause is one of those of `AdaptedEnv`.
        RenderingError: the package loads OpenGL, which is missing.
    """
    headless.load_llvm()  # packages may load OpenGL when they are imported
    with opengl_errors_explained():
        return _env_class(adapter)(env_id, adapter, **kwargs)


def _env_class(adapter: Mapping[str, Any]) -> type["AdaptedEnv"]:
    """Import the environment's module and the class that adapts it."""
    if adapter["module"]:
        _import("task.adapter.module", adapter["module"], adapter["install"])
    module, _, name = adapter["env_class"].partition(":")
    env_class = getattr(_import("task.adapter.env_class", module, adapter["install"]), name, None)
    if not (isinstance(env_class, type) and issubclass(env_class, AdaptedEnv)):
        raise ValueError(
            f"task.adapter.env_class={adapter['env_class']} must be a class derived from "
            "AdaptedEnv, written as module:Class"
        )
    return env_class


class AdaptedEnv(SimEnv):
    """A gymnasium environment of another package, adapted to `SimEnv` by a description.

    Images come from the newest observation or from the environment's `render`. They are resized by
    averaging areas. `shadows` and `multisampling` are only recorded and have no other effect.
    """

    def __init__(
        self,
        env_id: str,
        adapter: Mapping[str, Any],
        *,
        control_hz: int,
        action_space: str = "joint",
        image_size: int = 96,
        camera_names: Iterable[str] = (),
        shadows: bool = False,
        multisampling: bool = False,
        render_images: bool = True,
    ) -> None:
        """Make the environment `env_id` and check it against its description.

        Args:
            adapter: the description.
            control_hz: control rate, used if the environment has no `metadata["render_fps"]`.
            image_size: side of the square images in pixels.

        Raises:
            ValueError: the environment cannot be made, or does not match its description.
        """
        if action_space != "joint":
            raise ValueError(
                f"task.action_space={action_space}: {env_id} has only one action space; set "
                "task.action_space=joint"
            )
        self._adapter = adapter
        self._render_images = render_images
        self._render_settings: dict[str, Any] = {
            "image_size": (image_size, image_size),
            "camera_names": tuple(camera_names),
            "shadows": shadows,
            "multisampling": multisampling,
        }
        for camera in self._render_settings["camera_names"]:
            if camera not in adapter["cameras"]:
                cameras = ", ".join(adapter["cameras"])
                raise ValueError(
                    f"unknown camera {camera!r} in data.camera_names; task.adapter.cameras has: "
                    f"{cameras}"
                )

        self._env = _make(env_id, adapter["kwargs"])
        self._on_env_created()
        self._last_observation: Any = None
        self._max_stage = 0
        for source in adapter["cameras"].values():
            self._check_source(source)
        self.control_hz = self._env.metadata.get("render_fps", control_hz)
        self.num_stages = len(adapter["stage_thresholds"])
        self.success_description = (
            adapter["success_description"]
            or f"{adapter['progress_signal']} reaches {adapter['stage_thresholds'][-1]:g}"
        )
        self.action_space = self._action_box()
        self.observation_space = self._observation_box()

    # The gymnasium interface -------------------------------------------------------------------

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start an episode at stage 0. `seed` and `options` are passed to the environment."""
        with opengl_errors_explained():
            self._last_observation, _ = self._env.reset(seed=seed, options=options)
        self._max_stage = 0
        return self._observation(), self._info(0)

    def step(self, action: ArrayLike) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Advance by one environment step.

        Raises:
            ValueError: the action is not finite or has another shape than the action space, or
                `progress_signal` is a path that the environment's `info` does not have.
        """
        with opengl_errors_explained():
            outcome = self._env.step(self._scale_action(action))
        self._last_observation, reward, terminated, truncated, info = outcome
        stage = self._stage({"reward": reward, "terminated": terminated, "info": info})
        self._max_stage = max(self._max_stage, stage)
        terminated = bool(terminated) and not self._adapter["ignore_termination"]
        return self._observation(), float(reward), terminated, bool(truncated), self._info(stage)

    def close(self) -> None:
        """Close the environment."""
        self._env.close()

    # Used by recorders, experts and evaluation -------------------------------------------------

    @property
    def render_settings(self) -> dict[str, Any]:
        return dict(self._render_settings)

    def render_cameras(self) -> dict[str, Image]:
        sources, settings = self._adapter["cameras"], self._render_settings
        return {
            name: resize(self._image(sources[name]), settings["image_size"])
            for name in settings["camera_names"]
        }

    def render_overview(self, size: tuple[int, int] = OVERVIEW_SIZE) -> Image:
        """Return the image of the first camera, scaled to the size with black margins."""
        image = self._image(next(iter(self._adapter["cameras"].values())))
        scale = min(np.divide(size, image.shape[:2]))
        height, width = (round(side * scale) for side in image.shape[:2])
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
        overview = np.zeros((*size, 3), np.uint8)
        overview[top : top + height, left : left + width] = resize(image, (height, width))
        return overview

    def ee_poses(self) -> FloatArray:
        return np.empty((0, 7))

    def project_to_pixels(self, points: FloatArray) -> FloatArray:
        raise NotImplementedError("the camera parameters of an adapted environment are not known")

    # May be overridden for a particular environment --------------------------------------------

    def object_poses(self) -> dict[str, FloatArray]:
        """Return poses (7,) by object: xyz in m and quaternion wxyz in the world frame."""
        return {}

    def _on_env_created(self) -> None:
        """Prepare `self._env`, before it is used for the first time."""

    def _check_source(self, source: str) -> None:
        """Raise ValueError if the environment has no images from this source."""
        if source != RENDER:
            _lookup("observation", self._env.observation_space, source)
        elif self._env.render_mode != "rgb_array":
            raise ValueError(
                f"the source {RENDER} needs task.adapter.kwargs={{render_mode: rgb_array}}"
            )

    def _image(self, source: str) -> Image:
        """Return the current image (H, W, 3) uint8 RGB from a source, in its original size."""
        if source == RENDER:
            with opengl_errors_explained():
                image = np.asarray(self._env.render())
        else:
            image = np.asarray(_lookup("observation", self._last_observation, source))
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(
                f"the image {source!r} is {image.dtype}{image.shape}, not uint8 (H, W, 3)"
            )
        return image

    def _action_box(self) -> spaces.Box:
        """Return the space of actions that `step` accepts."""
        box = self._env.action_space
        if not isinstance(box, spaces.Box) or len(box.shape) != 1:
            raise ValueError(f"the action space must be a Box with one axis, not {box}")
        if self._adapter["action_scaling"] == "none":
            return box
        if not box.is_bounded():
            raise ValueError(f"task.adapter.action_scaling=box needs finite bounds, not {box}")
        return spaces.Box(-1.0, 1.0, box.shape, np.float32)

    # Internals ---------------------------------------------------------------------------------

    def _scale_action(self, action: ArrayLike) -> NDArray[Any]:
        """Check an action and convert it to the environment's units."""
        scaled = np.asarray(action, dtype=np.float64)
        if scaled.shape != self.action_space.shape or not np.isfinite(scaled).all():
            raise ValueError(
                f"action must be finite with shape {self.action_space.shape}, got {action!r}"
            )
        box = self._env.action_space
        assert isinstance(box, spaces.Box)
        if self._adapter["action_scaling"] == "box":
            scaled = box.low + (scaled + 1) / 2 * (box.high - box.low)
        return scaled.astype(box.dtype)

    def _stage(self, outcome: Mapping[str, Any]) -> int:
        value = float(_lookup("outcome of a step", outcome, self._adapter["progress_signal"]))
        return bisect_right(self._adapter["stage_thresholds"], value)

    def _observation(self) -> dict[str, Any]:
        observation: dict[str, Any] = {}
        for name in self._vectors():
            leaves = [
                _lookup("observation", self._last_observation, path) for path in self._adapter[name]
            ]
            observation[name] = np.concatenate([np.ravel(leaf) for leaf in leaves]).astype(
                np.float32
            )
        if self._render_images:
            observation["images"] = self.render_cameras()
        return observation

    def _info(self, stage: int) -> dict[str, Any]:
        return {
            "stage": stage,
            "max_stage": self._max_stage,
            "success": self._max_stage == self.num_stages,
            "poses": self.object_poses(),
        }

    def _vectors(self) -> list[str]:
        """Return the names of the vectors that observations have."""
        return [name for name in ("qpos", "qvel") if self._adapter[name]]

    def _observation_box(self) -> spaces.Dict:
        space = self._env.observation_space
        entries: dict[str, spaces.Space[Any]] = {}
        for name in self._vectors():
            shapes = [_lookup("observation", space, path).shape for path in self._adapter[name]]
            size = sum(int(np.prod(shape)) for shape in shapes)
            entries[name] = spaces.Box(-np.inf, np.inf, (size,), np.float32)
        if self._render_images:
            settings = self._render_settings
            image = spaces.Box(0, 255, (*settings["image_size"], 3), np.uint8)
            entries["images"] = spaces.Dict(dict.fromkeys(settings["camera_names"], image))
        return spaces.Dict(entries)


def resize(image: Image, size: tuple[int, int]) -> Image:
    """Return a copy of an image, scaled to `size` (height, width) by averaging areas."""
    if image.shape[:2] == size:
        return image.copy()
    rows, columns = (_area_weights(*sides) for sides in zip(image.shape[:2], size, strict=True))
    mean = np.einsum("ih,hwc,jw->ijc", rows, image, columns, optimize=True)
    return np.rint(mean).astype(np.uint8)


def _area_weights(length: int, new_length: int) -> NDArray[np.float32]:
    """Return the weights (new_length, length) of the old pixels of a line in each new pixel."""
    edges = np.arange(new_length + 1) * (length / new_length)
    pixels = np.arange(length)
    ends = np.minimum(edges[1:, None], pixels + 1)
    overlap = np.clip(ends - np.maximum(edges[:-1, None], pixels), 0, None)
    return (overlap * (new_length / length)).astype(np.float32)


def _import(option: str, module: str, install: str | None) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        hint = f"install it with: {install}" if install else "install the package that contains it"
        raise ValueError(f"{option}={module}: no module {error.name!r}; {hint}") from error


def _make(env_id: str, kwargs: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    try:
        # -1 disables the time limit of the registration, because the task has its own.
        return gymnasium.make(env_id, max_episode_steps=-1, disable_env_checker=True, **kwargs)
    except gymnasium.error.UnregisteredEnv as error:
        raise ValueError(
            f"task.env_id={env_id}: {error} Does task.adapter.module register it?"
        ) from error
    except TypeError as error:
        raise ValueError(
            f"task.adapter.kwargs={dict(kwargs)} do not fit {env_id}: {error}"
        ) from error


def _lookup(name: str, tree: Any, path: str) -> Any:
    """Return the leaf at a dotted path.

    Raises:
        ValueError: the path does not lead to a leaf. The message lists the valid paths.
    """
    node = tree
    for key in filter(None, path.split(".")):
        # `in` a gymnasium space tests for elements, not for keys.
        branches = dict(node) if isinstance(node, Mapping) else {}
        node = branches.get(key)
    if node is None or isinstance(node, Mapping):
        raise ValueError(f"the {name} has no {path!r}; it has: {', '.join(_leaf_paths(tree))}")
    return node


def _leaf_paths(tree: Any, prefix: str = "") -> list[str]:
    """Return the dotted paths of all leaves."""
    if not isinstance(tree, Mapping):
        return [prefix.removesuffix(".") or "."]
    return [path for key, branch in tree.items() for path in _leaf_paths(branch, f"{prefix}{key}.")]
