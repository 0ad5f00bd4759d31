"""Encodes and decodes videos in memory.

This uses PyAV itself, and not imageio with PyAV: imageio looks for reference cycles whenever it
closes a video, which takes longer than the video of an episode where PyTorch and Ray are loaded.
"""

from __future__ import annotations

import io

import av
import imageio.v3 as iio
import numpy as np

FRAMES_PER_SECOND = 25
"""Frame rate of videos, unless there are fewer images."""
GIF_FRAMES_PER_SECOND = 5
"""Frame rate of animated GIFs: at 25, an episode's GIF is 30 times as large as its video."""


def encode_video(frames: np.ndarray, fps: float = FRAMES_PER_SECOND) -> bytes:
    """Encode frames (T, H, W, 3) uint8 of even height and width as H.264 in MP4."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("h264", rate=round(fps))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return file.getvalue()


def decode_video(video: bytes) -> np.ndarray:
    """Decode a video to frames (T, H, W, 3) uint8."""
    with av.open(io.BytesIO(video), "r") as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def frame_rate(video: bytes) -> float:
    """Return the frames per second of a video."""
    with av.open(io.BytesIO(video), "r") as container:
        return float(container.streams.video[0].average_rate or FRAMES_PER_SECOND)


def convert_to_gif(video: bytes) -> bytes:
    """Convert a video to an animated GIF at `GIF_FRAMES_PER_SECOND`, for charts without video."""
    fps = frame_rate(video)
    step = max(1, round(fps / GIF_FRAMES_PER_SECOND))
    frames, period_ms = decode_video(video)[::step], round(1000 * step / fps)
    return iio.imwrite(
        "<bytes>", frames, extension=".gif", plugin="pillow", duration=period_ms, loop=0
    )
