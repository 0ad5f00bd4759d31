"""The task and its demonstrations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from imf_ray.errors import UserError
from imf_ray.schema.options import check_options, option

READERS = ("train", "tune", "collect")
"""Commands that read a data set to train on it or to extend it."""


@dataclass
class DataConfig:
    """The demonstrations and how they are read."""

    dataset_dir: str = option(
        "data/sim_transfer",
        "Folder of the episodes. For reading it may be an fsspec URL (s3://bucket/demos, "
        "https://host/demos), whose files are read without a copy; some file systems need an "
        "extra package.",
        sweepable=False,
        commands=READERS,
    )
    camera_names: list[str] = option(
        ["r_vis", "top", "front"],
        "Cameras that are recorded and read.",
        commands=(*READERS, "evaluate", "compare"),
    )
    format: str = option(
        "auto",
        "Format of the episode files (docs/formats.md); auto detects it for each file.",
        choices="imf_ray.data.episode_formats:FORMATS",
        commands=(*READERS, "dataset", "evaluate", "compare"),
    )
    resize_images: bool = option(
        False,
        "Accept images of any size: crop the central square and scale it to task.image_size.",
        commands=READERS,
    )
    on_bad_episode: str = option(
        "error",
        "error stops at the first invalid file; skip names each invalid file and continues "
        "without it.",
        choices=("error", "skip"),
        commands=READERS,
    )
    read_block_steps: int = option(
        25,
        "Sample starts in one row of the Ray dataset. A row is one read of one episode.",
        min=1,
    )
    shuffle_buffer_blocks: int = option(
        4, "Rows of a virtual shard whose samples a worker shuffles together.", min=1
    )
    virtual_shards: int | None = option(
        None,
        "Virtual shards of the batch order (MosaicML's canonical nodes), fixed for a run. A "
        "divisor of train.batch_size and at least the number of workers; a multiple of the "
        "workers gives them equal shares. null is 8, fewer for a batch that 8 does not divide, "
        "more for more workers.",
    )

    def __post_init__(self) -> None:
        check_options("data", self)
        if not self.camera_names:
            raise UserError("data.camera_names is empty: name at least one camera.")


@dataclass
class AdapterConfig:
    """Adapter that makes a task of any gymnasium environment (docs/environments.md)."""

    module: str | None = option(
        None, "Python module that registers task.env_id; null imports none."
    )
    install: str | None = option(
        None, "Command that installs the module, for the error message when it is missing."
    )
    kwargs: dict[str, Any] = option({}, "Arguments of the environment's constructor.")
    env_class: str = option(
        "imf_ray.sim.gym_adapter:AdaptedEnv", "Adapter class, written as module:Class."
    )
    cameras: dict[str, str] = option(
        {}, "For each camera, the dotted path of its image in the observation, or render()."
    )
    qpos: list[str] = option(
        [], "Dotted paths in the observation; their concatenated values are the state."
    )
    qvel: list[str] = option([], "The same for velocities; may be empty.")
    action_scaling: str = option(
        "none",
        "none passes actions on unchanged; box scales -1 to 1 to the environment's action space.",
        choices=("none", "box"),
    )
    progress_signal: str = option(
        "reward", "Signal that measures progress: reward, terminated or info.KEY."
    )
    stage_thresholds: list[float] = option(
        [1.0],
        "Increasing values of progress_signal; reaching the k-th reaches stage k, the last is "
        "success.",
    )
    success_description: str = option(
        "",
        "Definition of success in words, for records; empty derives it from progress_signal and "
        "stage_thresholds.",
    )
    ignore_termination: bool = option(
        False, "Continue to task.max_episode_steps after the environment terminates."
    )

    def __post_init__(self) -> None:
        check_options("task.adapter", self)
        for key in ("cameras", "qpos", "stage_thresholds"):
            if not getattr(self, key):
                raise UserError(f"task.adapter.{key} is empty (see docs/environments.md).")
        if self.stage_thresholds != sorted(set(self.stage_thresholds)):
            raise UserError(f"task.adapter.stage_thresholds={self.stage_thresholds} must increase.")


@dataclass
class TaskConfig:
    """The simulated task, for demonstrations and for rollouts."""

    env_id: str = option(MISSING, "Gymnasium id of the environment.", match_training=True)
    action_space: str = option(
        "joint",
        "joint: joint targets in radians. ee: end-effector poses, solved by inverse kinematics.",
        choices=("joint", "ee"),
        match_training=True,
    )
    image_size: int = option(
        96, "Side of the square camera images, in pixels.", min=1, match_training=True
    )
    shadows: bool = option(False, "Render shadows.", match_training=True)
    multisampling: bool = option(False, "Render with anti-aliasing.", match_training=True)
    control_hz: int = option(
        50,
        "Control steps per second; demonstrations and rollouts must agree.",
        min=1,
        match_training=True,
    )
    max_episode_steps: int = option(400, "Control steps of an episode.", min=1)
    adapter: AdapterConfig | None = option(
        None, "Adapts a gymnasium environment of another package; null for built-in tasks."
    )

    def __post_init__(self) -> None:
        check_options("task", self)

    def env_kwargs(self, camera_names: Sequence[str]) -> dict[str, Any]:
        """Arguments with which `make_env(env_id)` of `imf_ray.sim.factory` makes this task."""
        return {
            "adapter": dataclasses.asdict(self.adapter) if self.adapter else None,
            "control_hz": self.control_hz,
            "max_episode_steps": self.max_episode_steps,
            "action_space": self.action_space,
            "image_size": self.image_size,
            "camera_names": tuple(camera_names),
            "shadows": self.shadows,
            "multisampling": self.multisampling,
        }
