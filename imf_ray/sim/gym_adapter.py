"""Gymnasium environments that are not ours, made into worlds by a description of them.

The description is a mapping with the keys of `imf_ray.config.AdapterConfig`, where each is
explained. Paths in an observation or an `info` are dotted (`pixels.top`); `.` is the whole.
"""

import importlib
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from imf_ray.sim.base import OVERVIEW_SIZE, FloatArray, SimEnv
from imf_ray.sim.rendering import Image

RENDER = "render()"
"""The source of a camera that is the environment's own rendering, made only where it is asked."""


def adapt(env_id: str, adapter: Mapping[str, Any], **kwargs: Any) -> "AdaptedEnv":
    """The world of class `adapter["env_class"]` around the environment `env_id`.

    Raises ValueError when a module is missing, and as the world's constructor.
    """
    if adapter["module"]:
        _import("task.adapter.module", adapter["module"], adapter["install"])
    module, _, name = adapter["env_class"].partition(":")
    kind = getattr(_import("task.adapter.env_class", module, adapter["install"]), name, None)
    if not (isinstance(kind, type) and issubclass(kind, AdaptedEnv)):
        raise ValueError(
            f"task.adapter.env_class={adapter['env_class']} must name a class derived from AdaptedWorld, "
            "as module:Class"
        )
    return kind(env_id, adapter, **kwargs)


class AdaptedEnv(SimEnv):
    """An environment seen through its description.

    Pictures are taken from the newest observation or from the environment's `render`, and brought
    to the wanted size by averaging areas. `shadows` and `multisampling` are only recorded.
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
        """`image_size`: side of the square pictures in pixels. `control_hz` holds where the
        environment does not tell its own rate (`metadata["render_fps"]`).

        Raises ValueError where the environment cannot be made, or lacks what is described.
        """
        if action_space != "joint":
            raise ValueError(
                f"task.action_space={action_space}: {env_id} has only its own actions; set "
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
                known = ", ".join(adapter["cameras"])
                raise ValueError(f"unknown camera {camera!r}; task.adapter.cameras has: {known}")

        self._env = _make(env_id, adapter["kwargs"])
        self._on_env_created()
        self._seen: Any = None
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
        """Starts an episode at stage 0; `seed` and `options` are the environment's."""
        self._seen, _ = self._env.reset(seed=seed, options=options)
        self._max_stage = 0
        return self._observation(), self._info(0)

    def step(self, action: ArrayLike) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Advances one control step.

        Raises ValueError when the action has another shape than the action space or is not finite,
        or when the environment's `info` lacks what `progress` names.
        """
        self._seen, reward, terminated, truncated, info = self._env.step(self._scaled(action))
        stage = self._stage({"reward": reward, "terminated": terminated, "info": info})
        self._max_stage = max(self._max_stage, stage)
        over = bool(terminated) and not self._adapter["ignore_termination"]
        return self._observation(), float(reward), over, bool(truncated), self._info(stage)

    def close(self) -> None:
        """Closes the environment."""
        self._env.close()

    # What recorders, experts and judges need besides -------------------------------------------

    @property
    def render_settings(self) -> dict[str, Any]:
        return dict(self._render_settings)

    def render_cameras(self) -> dict[str, Image]:
        sources, settings = self._adapter["cameras"], self._render_settings
        return {
            name: resize(self._picture(sources[name]), settings["image_size"])
            for name in settings["camera_names"]
        }

    def view(self) -> Image:
        """The first camera's picture, fitted into the view between black margins."""
        picture = self._picture(next(iter(self._adapter["cameras"].values())))
        scale = min(np.divide(OVERVIEW_SIZE, picture.shape[:2]))
        height, width = (round(side * scale) for side in picture.shape[:2])
        top, left = (OVERVIEW_SIZE[0] - height) // 2, (OVERVIEW_SIZE[1] - width) // 2
        view = np.zeros((*OVERVIEW_SIZE, 3), np.uint8)
        view[top : top + height, left : left + width] = resize(picture, (height, width))
        return view

    def ee_poses(self) -> FloatArray:
        return np.empty((0, 7))

    def project(self, points: FloatArray) -> FloatArray:
        raise NotImplementedError("the cameras of an adapted environment are not known")

    # What a world of one particular environment may know better --------------------------------

    def object_poses(self) -> dict[str, FloatArray]:
        """Poses (7,) of the objects: xyz in m and quaternion wxyz in the world frame."""
        return {}

    def _on_env_created(self) -> None:
        """Called once when `self._env` is made, before anything is asked of it."""

    def _check_source(self, source: str) -> None:
        """Raises ValueError unless the environment has pictures of this source."""
        if source != RENDER:
            _lookup("observation", self._env.observation_space, source)
        elif self._env.render_mode != "rgb_array":
            raise ValueError(
                f"a camera from {RENDER} needs task.adapter.kwargs={{render_mode: rgb_array}}"
            )

    def _picture(self, source: str) -> Image:
        """The current picture (H, W, 3) uint8 RGB of a source, in whatever size it is there."""
        picture: Any = (
            self._env.render() if source == RENDER else _lookup("observation", self._seen, source)
        )
        picture = np.asarray(picture)
        if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
            raise ValueError(
                f"the picture {source!r} is {picture.dtype}{picture.shape}, not uint8 (H, W, 3)"
            )
        return picture

    def _action_box(self) -> spaces.Box:
        """The actions that `step` takes."""
        box = self._env.action_space
        if not isinstance(box, spaces.Box) or len(box.shape) != 1:
            raise ValueError(f"actions must be a Box of one dimension; these are {box}")
        if self._adapter["action_scaling"] == "none":
            return box
        if not box.is_bounded():
            raise ValueError(f"task.adapter.action_scaling=box needs finite bounds, not {box}")
        return spaces.Box(-1.0, 1.0, box.shape, np.float32)

    # Inside ------------------------------------------------------------------------------------

    def _scaled(self, action: ArrayLike) -> NDArray[Any]:
        wanted = np.asarray(action, dtype=np.float64)
        if wanted.shape != self.action_space.shape or not np.isfinite(wanted).all():
            raise ValueError(
                f"action must be finite with shape {self.action_space.shape}, got {action!r}"
            )
        box = self._env.action_space
        assert isinstance(box, spaces.Box)
        if self._adapter["action_scaling"] == "box":
            wanted = box.low + (wanted + 1) / 2 * (box.high - box.low)
        return wanted.astype(box.dtype)

    def _stage(self, outcome: Mapping[str, Any]) -> int:
        value = float(_lookup("step's outcome", outcome, self._adapter["progress_signal"]))
        return bisect_right(self._adapter["stage_thresholds"], value)

    def _observation(self) -> dict[str, Any]:
        observation: dict[str, Any] = {
            name: np.concatenate(
                [np.ravel(_lookup("observation", self._seen, path)) for path in self._adapter[name]]
            ).astype(np.float32)
            for name in self._vectors()
        }
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
            picture = spaces.Box(0, 255, (*settings["image_size"], 3), np.uint8)
            entries["images"] = spaces.Dict(dict.fromkeys(settings["camera_names"], picture))
        return spaces.Dict(entries)


def resize(picture: Image, size: tuple[int, int]) -> Image:
    """A copy of a picture (H, W, 3) in `size` (height, width), each pixel the mean of its area."""
    if picture.shape[:2] == size:
        return picture.copy()
    rows, columns = (_area_weights(*sides) for sides in zip(picture.shape[:2], size, strict=True))
    mean = np.einsum("ih,hwc,jw->ijc", rows, picture, columns, optimize=True)
    return np.rint(mean).astype(np.uint8)


def _area_weights(length: int, wanted: int) -> NDArray[np.float32]:
    """Shares (wanted, length) of the old pixels of a line in its new ones."""
    edges = np.arange(wanted + 1) * (length / wanted)
    pixels = np.arange(length)
    ends = np.minimum(edges[1:, None], pixels + 1)
    overlap = np.clip(ends - np.maximum(edges[:-1, None], pixels), 0, None)
    return (overlap * (wanted / length)).astype(np.float32)


def _import(option: str, module: str, install: str | None) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        way_out = f"install it with: {install}" if install else "install the package that has it"
        raise ValueError(f"{option}={module}: no module {error.name!r}; {way_out}") from error


def _make(env_id: str, kwargs: Mapping[str, Any]) -> gymnasium.Env[Any, Any]:
    try:
        # The time limit that it was registered with is not the task's.
        return gymnasium.make(env_id, max_episode_steps=-1, disable_env_checker=True, **kwargs)
    except gymnasium.error.UnregisteredEnv as error:
        raise ValueError(
            f"task.env_id={env_id}: {error} Does task.adapter.module name it?"
        ) from error
    except TypeError as error:
        raise ValueError(
            f"task.adapter.kwargs={dict(kwargs)} do not fit {env_id}: {error}"
        ) from error


def _lookup(what: str, tree: Any, path: str) -> Any:
    """The leaf at a dotted path; raises ValueError, with the known paths, where there is none."""
    found = tree
    for key in filter(None, path.split(".")):
        branches = dict(found) if isinstance(found, Mapping) else {}  # `in` a space is not by key
        found = branches.get(key)
    if found is None or isinstance(found, Mapping):
        raise ValueError(f"the {what} has no {path!r}; it has: {', '.join(_leaf_paths(tree))}")
    return found


def _leaf_paths(tree: Any, prefix: str = "") -> list[str]:
    if not isinstance(tree, Mapping):
        return [prefix.removesuffix(".") or "."]
    return [path for key, branch in tree.items() for path in _leaf_paths(branch, f"{prefix}{key}.")]
