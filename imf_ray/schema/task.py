"""The task and its demonstrations."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from imf_ray.errors import UserError
from imf_ray.schema.checks import check_choice, check_min

EPISODE_FORMATS = ("auto", "imf_ray", "act", "act_plus_plus", "roboimi")


@dataclass
class DataConfig:
    """Where the demonstrations are and how they are read."""

    dataset_dir: str = "data/sim_transfer"
    """A folder, or for reading a URL that fsspec knows (`s3://bucket/demos`, `https://host/demos`):
    its files are read in place; some file systems want a package of their own."""
    camera_names: list[str] = field(default_factory=lambda: ["r_vis", "top", "front"])
    format: str = "auto"
    """Kind of the episode files: `auto` (each file shows it), `imf_ray`, `act`, `act_plus_plus` or
    `roboimi`; docs/formats.md says what they are."""
    resize_images: bool = False
    """Take pictures of any size: their central square, scaled to `task.image_size`."""
    on_bad_episode: str = "error"
    """`error` stops at the first bad file; `skip` names each bad file and goes on without it."""
    read_block_steps: int = 25
    """Sample starts in one row of the Ray dataset (one read of one episode)."""
    shuffle_buffer_blocks: int = 4
    """Rows of one virtual shard whose windows are shuffled together in a worker."""
    virtual_shards: int | None = None
    """Virtual shards of the batch order: a divisor of the batch, and at least as many as the
    workers, whose shares are equal if it is a multiple of them. null is 8, fewer for a batch that 8
    does not divide, more for more workers. Fixed for the life of a run."""

    def __post_init__(self) -> None:
        check_choice("data.format", self.format, EPISODE_FORMATS)
        check_choice("data.on_bad_episode", self.on_bad_episode, ("error", "skip"))
        check_min("data", self, read_block_steps=1, shuffle_buffer_blocks=1)
        if not self.camera_names:
            raise UserError("data.camera_names is empty: name at least one camera.")


@dataclass
class AdapterConfig:
    """How a gymnasium environment that is not ours becomes a task; docs/worlds.md explains it."""

    module: str | None = None
    """Imported first, to register `task.env_id`."""
    install: str | None = None
    """The command that installs the module, for the message where it is missing."""
    kwargs: dict[str, Any] = field(default_factory=dict)
    """Arguments of the environment's constructor."""
    env_class: str = "imf_ray.sim.gym_adapter:AdaptedEnv"
    """The class that adapts it, `module:Class`."""
    cameras: dict[str, str] = field(default_factory=dict)
    """Where each camera's picture is: a dotted path in the observation, or `render()`."""
    qpos: list[str] = field(default_factory=list)
    """Dotted paths in the observation whose values, one after the other, are the state."""
    qvel: list[str] = field(default_factory=list)
    """The same for velocities; none is allowed."""
    action_scaling: str = "none"
    """`none`: actions are the environment's; `box`: -1 to 1 is stretched over its action Box."""
    progress_signal: str = "reward"
    """What tells how far the episode is: `reward`, `terminated` or `info.KEY`."""
    stage_thresholds: list[float] = field(default_factory=lambda: [1.0])
    """Stage k is reached where `progress_signal` is at least the k-th number; the last is success."""
    success_description: str = ""
    """What success means, in words, for records; empty is made from `progress_signal` and `stage_thresholds`."""
    ignore_termination: bool = False
    """Go on to `task.max_episode_steps` although the environment says that it is over."""

    def __post_init__(self) -> None:
        check_choice("task.adapter.action_scaling", self.action_scaling, ("none", "box"))
        for key in ("cameras", "qpos", "stage_thresholds"):
            if not getattr(self, key):
                raise UserError(f"task.adapter.{key} is empty (see docs/worlds.md).")
        if self.stage_thresholds != sorted(set(self.stage_thresholds)):
            raise UserError(f"task.adapter.stage_thresholds={self.stage_thresholds} must increase.")


@dataclass
class TaskConfig:
    """The simulated task, as recorded in episodes and as rolled out."""

    env_id: str = MISSING
    action_space: str = "joint"
    image_size: int = 96
    """Side of the square camera images, in pixels."""
    shadows: bool = False
    multisampling: bool = False
    control_hz: int = 50
    """Control steps per second; demonstrations and simulation must agree."""
    max_episode_steps: int = 400
    adapter: AdapterConfig | None = None
    """Adapts an environment that is not ours."""

    def __post_init__(self) -> None:
        if self.action_space not in ("joint", "ee"):
            raise UserError(
                f"task.action_space={self.action_space!r} is unknown: choose 'joint' or 'ee'."
            )
        check_min("task", self, image_size=1, control_hz=1, max_episode_steps=1)

    def env_kwargs(self, camera_names: Sequence[str]) -> dict[str, Any]:
        """Arguments with which `make_world(env_id)` of `imf_ray.sim.base` makes this task."""
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
