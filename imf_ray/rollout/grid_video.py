"""Makes the grid video of an evaluation: one tile per episode, with a coloured frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from imf_ray.rollout.records import EpisodeRecord
from imf_ray.video import decode_video, encode_video

BORDER = 4
"""Width in pixels of a tile's frame, which is green for success and red for failure."""
SUCCESS_COLOR, FAILURE_COLOR, TEXT_COLOR = (40, 150, 70), (200, 50, 40), (255, 255, 255)
CAPTION_HEIGHT = 18
"""Height in pixels of the caption above the video of a tile."""


@dataclass(frozen=True)
class VideoClip:
    """An episode and its video."""

    record: EpisodeRecord
    video: bytes

    @property
    def caption(self) -> str:
        """The text above the video."""
        outcome = "success" if self.record.success else "failure"
        return f"seed {self.record.seed}  {outcome}  stage {self.record.max_stage}"


def failures_first(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """Return the records with failures first, each part sorted by seed."""
    return sorted(records, key=lambda record: (record.success, record.seed))


def grid_video(clips: Sequence[VideoClip]) -> bytes:
    """Encode one or more clips as an MP4 in which they play next to each other, row by row.

    All clips must have the same frame size. A clip that is shorter than the longest one repeats its
    last frame.
    """
    columns = math.ceil(math.sqrt(len(clips)))
    rows = math.ceil(len(clips) / columns)
    videos = [decode_video(clip.video) for clip in clips]
    num_frames = max(len(frames) for frames in videos)
    height, width = videos[0].shape[1:3]
    tile_height, tile_width = height + CAPTION_HEIGHT + BORDER, width + 2 * BORDER
    grid = np.zeros((num_frames, rows * tile_height, columns * tile_width, 3), np.uint8)
    for index, (clip, frames) in enumerate(zip(clips, videos, strict=True)):
        top, left = (index // columns) * tile_height, (index % columns) * tile_width
        grid[:, top : top + tile_height, left : left + tile_width] = _tile(
            clip, tile_height, tile_width
        )
        interior = grid[:, top + CAPTION_HEIGHT :, left + BORDER :][:, :height, :width]
        interior[: len(frames)], interior[len(frames) :] = frames, frames[-1]
    return encode_video(grid)


def _tile(clip: VideoClip, height: int, width: int) -> np.ndarray:
    """Return an image (height, width, 3) with the coloured frame and the caption of a clip."""
    color = SUCCESS_COLOR if clip.record.success else FAILURE_COLOR
    image = Image.new("RGB", (width, height), color)
    ImageDraw.Draw(image).text((BORDER, BORDER), clip.caption, fill=TEXT_COLOR)
    return np.asarray(image)
