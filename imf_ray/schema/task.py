"""The sections of the task and of its demonstrations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from imf_ray.errors import UserError
from imf_ray.schema.options import DEFAULT_CAMERAS, check_options, option

NO_SIMULATOR = "none"
"""Value of `task.env_id` for a policy that is trained for a real robot."""
READERS = ("train", "tune", "collect")
"""Commands that read a data set, to train on it or to add episodes to it."""


@dataclass
class DataConfig:
    """The demonstrations, and how they are read."""

    dataset_dir: str = option(
        "data/sim_transfer",
        "Folder of the episodes. For reading it may be an fsspec URL (s3://bucket/demos, "
        "https://host/demos). Its files are read without a local copy. Some file systems need an "
        "extra package. A resumed run may name another folder of the same episodes. evaluate looks "
        "here for held-out episodes that are no longer where the run read them.",
        is_path=True,
        resumable=True,
        sweepable=False,
        commands=(*READERS, "evaluate"),
    )
    camera_names: list[str] = option(
        DEFAULT_CAMERAS,
        "Cameras to record and to read.",
        commands=(*READERS, "evaluate", "compare"),
    )
    format: str = option(
        "auto",
        "Format of the episode files (docs/formats.md). auto detects it for each file.",
        choices="imf_ray.data.readers:FORMATS",
        commands=(*READERS, "dataset", "evaluate", "compare"),
    )
    channel_order: str = option(
        "auto",
        "Order of the color channels in the episode files: rgb, or bgr (red and blue swapped). For "
        "JPEG and PNG it is the order that a picture viewer shows. auto takes what a file records; "
        "otherwise rgb for arrays, and for JPEG and PNG bgr with a warning, because act-plus-plus "
        "stores them so (docs/formats.md). Images are always converted to rgb.",
        choices=("auto", "rgb", "bgr"),
        commands=("train", "tune", "dataset"),
    )
    features: dict[str, list[str]] = option(
        {},
        "For data sets with names of their own: the parts that are the state, the action, and each "
        "camera, as in data.features={state: [observation.state], top: [observation.images.top]}. "
        "Several parts of a state or an action are put together. {} takes the usual names.",
        commands=("train", "tune", "dataset"),
    )
    episodes: list[int] = option(
        [],
        "Numbers of the episodes that are used, as in data.episodes=[0,1,5]. [] uses all.",
        commands=("train", "tune"),
    )
    tasks: list[str] = option(
        [],
        "For data sets that name a task for each episode: the tasks whose episodes are used. [] "
        "uses all. Policies do not read the name of the task.",
        commands=("train", "tune"),
    )
    resize_images: bool = option(
        False,
        "Accept images of any size. The central square is cropped and scaled to task.image_size.",
        commands=READERS,
    )
    on_bad_episode: str = option(
        "error",
        "error stops at the first invalid file. skip prints the name of each invalid file and "
        "continues without it.",
        choices=("error", "skip"),
        commands=(*READERS, "dataset"),
    )
    read_block_steps: int = option(
        25,
        "Number of consecutive samples of an episode in a block. A block is a row of the Ray "
        "dataset and is read at once.",
        min=1,
    )
    shuffle_buffer_blocks: int = option(
        4,
        "Number of consecutive blocks of a virtual shard whose samples are shuffled together.",
        min=1,
    )
    virtual_shards: int | None = option(
        None,
        "Number of virtual shards of the batch order (MosaicML's canonical nodes). It must divide "
        "train.batch_size and be at least the number of workers. A multiple of the number of "
        "workers gives them equal shares. null uses 8, or fewer if 8 does not divide the batch "
        "size, or more if there are more workers.",
    )

    def __post_init__(self) -> None:
        check_options("data", self)
        if not self.camera_names:
            raise UserError("data.camera_names is empty. Set at least one camera.")


@dataclass
class ConvertConfig:
    """The data set that `imf-ray dataset convert` writes."""

    format: str = option(
        "lerobot",
        "lerobot writes LeRobot's format v3.0. imf_ray writes HDF5 files, one per episode, which "
        "train reads fastest.",
        choices=("lerobot", "imf_ray"),
    )
    codec: str = option(
        "av1",
        "Images of format=lerobot: videos (av1 or h264), which lose some detail, or png images in "
        "the tables, which lose nothing.",
        choices=("av1", "h264", "png"),
    )
    crf: int = option(30, "Quality of videos. Smaller is better and larger.", min=0, below=64)
    image_size: int | None = option(
        None,
        "Side of the new images in pixels: the central square, scaled. null keeps the size.",
        min=1,
    )
    fps: int | None = option(
        None, "Steps per second, for data sets that do not say it. null takes theirs.", min=1
    )

    def __post_init__(self) -> None:
        check_options("convert", self)


@dataclass
class AdapterConfig:
    """The adapter that turns any gymnasium environment into a task (docs/environments.md)."""

    module: str | None = option(
        None, "Python module to import, which registers task.env_id. null imports none."
    )
    install: str | None = option(
        None, "Command that installs the module, for the error message if it is missing."
    )
    kwargs: dict[str, Any] = option({}, "Arguments of the environment's constructor.")
    env_class: str = option(
        "imf_ray.sim.gym_adapter:AdaptedEnv", "Adapter class, written as module:Class."
    )
    cameras: dict[str, str] = option(
        {}, "For each camera, the dotted path of its image in the observation, or render()."
    )
    qpos: list[str] = option(
        [], "Dotted paths in the observation. The state is their concatenated values."
    )
    qvel: list[str] = option(
        [], "Dotted paths of the velocities in the observation. The list may be empty."
    )
    action_scaling: str = option(
        "none",
        "none leaves actions unchanged. box scales [-1, 1] to the environment's action space.",
        choices=("none", "box"),
    )
    progress_signal: str = option(
        "reward", "Signal that measures progress: reward, terminated or info.KEY."
    )
    stage_thresholds: list[float] = option(
        [1.0],
        "Increasing values of progress_signal. An episode reaches stage k when the signal reaches "
        "the k-th value. The last stage is success.",
    )
    success_description: str = option(
        "",
        "Definition of success in words, for records. If it is empty, it is made from "
        "progress_signal and stage_thresholds.",
        may_be_empty=True,
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
            raise UserError(
                f"task.adapter.stage_thresholds={self.stage_thresholds} must increase strictly."
            )


@dataclass
class TaskConfig:
    """The simulated task, for demonstrations and for rollouts."""

    env_id: str = option(
        "",
        "Gymnasium id of the environment. none is for a policy without a simulator (task=none).",
        match_training=True,
    )
    action_space: str = option(
        "joint",
        "joint (joint targets in radians) or ee (end-effector poses, solved by inverse "
        "kinematics).",
        choices=("joint", "ee"),
        match_training=True,
    )
    image_size: int = option(
        96, "Side of the square camera images in pixels.", min=1, match_training=True
    )
    shadows: bool = option(False, "Render shadows.", match_training=True)
    multisampling: bool = option(False, "Render with anti-aliasing.", match_training=True)
    control_hz: int = option(
        50,
        "Number of environment steps per second. Demonstrations and rollouts must agree.",
        min=1,
        match_training=True,
    )
    max_episode_steps: int = option(
        400, "Maximum number of environment steps of an episode.", min=1
    )
    adapter: AdapterConfig | None = option(
        None, "Adapter of an environment of another package. null is for built-in tasks."
    )

    def __post_init__(self) -> None:
        check_options("task", self)

    @property
    def has_simulator(self) -> bool:
        """False for task=none, a policy that is trained for a real robot."""
        return self.env_id != NO_SIMULATOR

    def env_kwargs(self, camera_names: Sequence[str]) -> dict[str, Any]:
        """Return the keyword arguments of `imf_ray.sim.factory.make_env` for this task."""
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
