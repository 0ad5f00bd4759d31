"""Videos of episodes."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

import imageio.v3 as iio
import numpy as np

from imf_ray.sim.rendering import CameraRenderer
from imf_ray.sim.transfer import SimTransferEnv

VIDEO_SIZE = (480, 640)
FRAMES_PER_SECOND = 25
CAMERA = "front"


class EpisodeVideo:
    """Collects the front view of an episode and writes it as an H.264 file on leaving."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._frames: list[np.ndarray] = []
        self._renderer: CameraRenderer | None = None
        self._steps = 0

    def add(self, env: SimTransferEnv) -> None:
        """Call before each control step; keeps every frame that the frame rate asks for."""
        if self._renderer is None:
            self._renderer = CameraRenderer(env.model, VIDEO_SIZE)
        if self._steps % (env.control_hz // FRAMES_PER_SECOND) == 0:
            self._frames.append(self._renderer.render(env.data, CAMERA))
        self._steps += 1

    def __enter__(self) -> EpisodeVideo:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._renderer is not None:
            self._renderer.close()
        if error is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            iio.imwrite(
                self._path, np.stack(self._frames), plugin="pyav", codec="h264",
                fps=FRAMES_PER_SECOND,
            )  # fmt: skip
