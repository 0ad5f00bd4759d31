"""Optional files of an episode: a video, its trajectory and an image of the path.

The path is that of the end effectors.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from imf_ray.sim.base import VIDEO_SIZE, SimEnv
from imf_ray.video import FRAMES_PER_SECOND, encode_video

VIDEO, TRAJECTORY, PATH_IMAGE = "video.mp4", "trajectory.npz", "trajectory.png"
PATH_COLOR, PATH_WIDTH = (255, 0, 0), 2


@dataclass(frozen=True)
class VideoFormat:
    """Size and rate of an episode's video."""

    size: tuple[int, int] = VIDEO_SIZE
    """Height and width in pixels."""
    fps: int = FRAMES_PER_SECOND
    """Frames per second of the video, unless the task has fewer steps."""
    speed: int = 1
    """Simulated seconds per second of the video."""


@dataclass(frozen=True)
class ArtifactRequest:
    """Files to write for an episode."""

    video: VideoFormat | None = None
    trajectory: bool = False
    """`trajectory.npz`, and `trajectory.png` if the env reports end-effector poses."""


class ArtifactRecorder:
    """Records the requested files of one episode while it runs.

    `trajectory.npz` holds these arrays for T environment steps. Poses are xyz in m and quaternion
    wxyz.

        qpos             (T, D)             joint state before each action
        action           (T, A)
        reward, stage    (T,)               after each action
        pose_{object}    (T, 7)             after each action
        ee_poses         (T + 1, arms, 7)   end effectors, before the first and after each action

    `trajectory.png` is the last overview image with the paths of the end effectors in red.
    """

    def __init__(self, request: ArtifactRequest, env: SimEnv) -> None:
        self._request, self._env = request, env
        self._frames: list[np.ndarray] = []
        self._steps: list[dict[str, Any]] = []
        self._ee_poses: list[np.ndarray] = []
        self._poses: list[Mapping[str, np.ndarray]] = []

    def before_step(self, observation: Mapping[str, Any], action: np.ndarray) -> None:
        """Record an observation and its action, before the environment step."""
        video = self._request.video
        if video is not None and len(self._steps) % self._frame_period(video) == 0:
            self._frames.append(self._env.render_overview(video.size))
        if self._request.trajectory and not self._steps:
            self._ee_poses.append(self._env.ee_poses())
        self._steps.append(
            {"qpos": observation["qpos"], "action": action} if self._request.trajectory else {}
        )

    def after_step(self, reward: float, info: Mapping[str, Any]) -> None:
        """Record the outcome of the environment step."""
        if self._request.trajectory:
            self._steps[-1] |= {"reward": reward, "stage": info["stage"]}
            self._ee_poses.append(self._env.ee_poses())
            self._poses.append(info["poses"])

    def files(self) -> dict[str, bytes]:
        """Return the content of the requested files by name; call it after the last step."""
        files = {}
        if (video := self._request.video) is not None:
            fps = self._env.control_hz * video.speed / self._frame_period(video)
            files[VIDEO] = encode_video(np.stack(self._frames), fps)
        if self._request.trajectory:
            files[TRAJECTORY] = self._trajectory()
            ee_poses = np.stack(self._ee_poses)
            if ee_poses.shape[1]:
                files[PATH_IMAGE] = self._ee_path_image(ee_poses)
        return files

    def _frame_period(self, video: VideoFormat) -> int:
        """Return the number of environment steps from one frame to the next."""
        return max(1, round(self._env.control_hz * video.speed / video.fps))

    def _trajectory(self) -> bytes:
        """Return the content of `trajectory.npz`."""
        arrays: dict[str, Any] = {
            key: np.stack([step[key] for step in self._steps]) for key in self._steps[0]
        }
        arrays["ee_poses"] = np.stack(self._ee_poses)
        for name in self._poses[0]:
            arrays[f"pose_{name}"] = np.stack([poses[name] for poses in self._poses])
        file = io.BytesIO()
        np.savez_compressed(file, **arrays)
        return file.getvalue()

    def _ee_path_image(self, ee_poses: np.ndarray) -> bytes:
        """Return the content of `trajectory.png`; `ee_poses` has the shape (T + 1, arms, 7)."""
        image = Image.fromarray(self._env.render_overview())
        draw = ImageDraw.Draw(image)
        for arm in range(ee_poses.shape[1]):
            path = self._env.project_to_pixels(ee_poses[:, arm, :3])
            visible = path[np.isfinite(path).all(axis=1)]
            draw.line([tuple(point) for point in visible], fill=PATH_COLOR, width=PATH_WIDTH)
        file = io.BytesIO()
        image.save(file, format="PNG")
        return file.getvalue()
