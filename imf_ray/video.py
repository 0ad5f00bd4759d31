"""Encodes and decodes videos in memory."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np

FRAMES_PER_SECOND = 25
"""Frame rate of all videos."""
GIF_FRAMES_PER_SECOND = 5
"""Frame rate of animated GIFs: at 25, an episode's GIF is 30 times as large as its video."""


def encode_video(frames: np.ndarray) -> bytes:
    """Encode frames (T, H, W, 3) uint8 of even height and width as H.264 in MP4."""
    return iio.imwrite(
        "<bytes>", frames, extension=".mp4", plugin="pyav", codec="h264", fps=FRAMES_PER_SECOND
    )


def decode_video(video: bytes) -> np.ndarray:
    """Decode a video to frames (T, H, W, 3) uint8."""
    return iio.imread(video, extension=".mp4", plugin="pyav")


def convert_to_gif(video: bytes) -> bytes:
    """Convert a video to an animated GIF at `GIF_FRAMES_PER_SECOND`, for charts without video."""
    frames = decode_video(video)[:: FRAMES_PER_SECOND // GIF_FRAMES_PER_SECOND]
    period_ms = 1000 // GIF_FRAMES_PER_SECOND
    return iio.imwrite(
        "<bytes>", frames, extension=".gif", plugin="pillow", duration=period_ms, loop=0
    )
