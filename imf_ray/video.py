"""Encodes and decodes videos in memory."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np

FRAMES_PER_SECOND = 25
"""Frame rate of all videos."""


def encode_video(frames: np.ndarray) -> bytes:
    """Encode frames (T, H, W, 3) uint8 of even height and width as H.264 in MP4."""
    return iio.imwrite(
        "<bytes>", frames, extension=".mp4", plugin="pyav", codec="h264", fps=FRAMES_PER_SECOND
    )


def decode_video(video: bytes) -> np.ndarray:
    """Decode a video to frames (T, H, W, 3) uint8."""
    return iio.imread(video, extension=".mp4", plugin="pyav")


def encode_gif(frames: np.ndarray) -> bytes:
    """Encode frames (T, H, W, 3) uint8 as an animated GIF at `FRAMES_PER_SECOND`."""
    period_ms = round(1000 / FRAMES_PER_SECOND)
    return iio.imwrite(
        "<bytes>", frames, extension=".gif", plugin="pillow", duration=period_ms, loop=0
    )
