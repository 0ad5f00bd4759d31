"""Encodes and decodes videos in memory."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np

FRAMES_PER_SECOND = 25
"""Frame rate of videos, unless there are fewer images."""
GIF_FRAMES_PER_SECOND = 5
"""Frame rate of animated GIFs: at 25, an episode's GIF is 30 times as large as its video."""


def encode_video(frames: np.ndarray, fps: float = FRAMES_PER_SECOND) -> bytes:
    """Encode frames (T, H, W, 3) uint8 of even height and width as H.264 in MP4."""
    return iio.imwrite(
        "<bytes>", frames, extension=".mp4", plugin="pyav", codec="h264", fps=round(fps)
    )


def decode_video(video: bytes) -> np.ndarray:
    """Decode a video to frames (T, H, W, 3) uint8."""
    return iio.imread(video, extension=".mp4", plugin="pyav")


def frame_rate(video: bytes) -> float:
    """Return the frames per second of a video."""
    return float(iio.immeta(video, extension=".mp4", plugin="pyav")["fps"])


def convert_to_gif(video: bytes) -> bytes:
    """Convert a video to an animated GIF at `GIF_FRAMES_PER_SECOND`, for charts without video."""
    fps = frame_rate(video)
    step = max(1, round(fps / GIF_FRAMES_PER_SECOND))
    frames, period_ms = decode_video(video)[::step], round(1000 * step / fps)
    return iio.imwrite(
        "<bytes>", frames, extension=".gif", plugin="pillow", duration=period_ms, loop=0
    )
