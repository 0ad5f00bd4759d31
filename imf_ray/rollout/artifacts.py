"""What can be kept of an episode besides its record: a video, its trajectory, a picture of it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from imf_ray.sim.base import SimEnv
from imf_ray.video import FRAMES_PER_SECOND, encode_video

VIDEO, TRAJECTORY, PATH_PICTURE = "video.mp4", "trajectory.npz", "trajectory.png"
VIDEO_DOWNSCALE = 2
"""A frame of the video has every so many pixels of the view."""
PATH_COLOR, PATH_WIDTH = (255, 0, 0), 2


@dataclass(frozen=True)
class ArtifactRequest:
    """Which files of an episode are wanted."""

    video: bool = False
    trajectory: bool = False
    """`trajectory.npz`, and where the task tells where its tools are, `trajectory.png`."""


class Artifacts:
    """Collects what is wanted of one episode while it is played.

    `trajectory.npz` holds, for T steps: `qpos` (T, D) before each action, `action` (T, A),
    `reward` (T,), `stage` (T,) and `pose_{object}` (T, 7) after it, and `ee_poses` (T + 1, arms, 7)
    from the start to the end; poses are xyz in m and quaternion wxyz. `trajectory.png` is the view
    of the end with the paths of the tools in red.
    """

    def __init__(self, keep: ArtifactRequest, world: SimEnv) -> None:
        self._keep, self._world = keep, world
        self._frames: list[np.ndarray] = []
        self._steps: list[dict[str, Any]] = []
        self._ee_poses: list[np.ndarray] = []
        self._poses: list[Mapping[str, np.ndarray]] = []

    def before_step(self, observation: Mapping[str, Any], action: np.ndarray) -> None:
        """Call with what the policy saw and does, before the world moves."""
        if self._keep.video:
            period = max(1, round(self._world.control_hz / FRAMES_PER_SECOND))
            if len(self._steps) % period == 0:
                self._frames.append(self._world.view()[::VIDEO_DOWNSCALE, ::VIDEO_DOWNSCALE])
        if self._keep.trajectory and not self._steps:
            self._ee_poses.append(self._world.ee_poses())
        self._steps.append(
            {"qpos": observation["qpos"], "action": action} if self._keep.trajectory else {}
        )

    def after_step(self, reward: float, info: Mapping[str, Any]) -> None:
        """Call with what the step brought."""
        if self._keep.trajectory:
            self._steps[-1] |= {"reward": reward, "stage": info["stage"]}
            self._ee_poses.append(self._world.ee_poses())
            self._poses.append(info["poses"])

    def files(self) -> dict[str, bytes]:
        """The files by name, once the episode is over."""
        files = {}
        if self._keep.video:
            files[VIDEO] = encode_video(np.stack(self._frames))
        if self._keep.trajectory:
            files[TRAJECTORY] = self._trajectory()
            ee_poses = np.stack(self._ee_poses)
            if ee_poses.shape[1]:
                files[PATH_PICTURE] = self._path_picture(ee_poses)
        return files

    def _trajectory(self) -> bytes:
        arrays: dict[str, Any] = {
            key: np.stack([step[key] for step in self._steps]) for key in self._steps[0]
        }
        arrays["ee_poses"] = np.stack(self._ee_poses)
        for name in self._poses[0]:
            arrays[f"pose_{name}"] = np.stack([poses[name] for poses in self._poses])
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()

    def _path_picture(self, ee_poses: np.ndarray) -> bytes:
        picture = Image.fromarray(self._world.view())
        draw = ImageDraw.Draw(picture)
        for arm in range(ee_poses.shape[1]):
            path = self._world.project(ee_poses[:, arm, :3])
            visible = path[np.isfinite(path).all(axis=1)]
            draw.line([tuple(point) for point in visible], fill=PATH_COLOR, width=PATH_WIDTH)
        file = io.BytesIO()
        picture.save(file, format="PNG")
        return file.getvalue()
