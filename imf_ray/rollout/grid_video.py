"""The grid video of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from imf_ray.rollout.records import EpisodeRecord
from imf_ray.video import decode_video, encode_video

BORDER = 4
"""Width in pixels of the frame that shows the outcome by its colour."""
SUCCESS_COLOR, FAILURE_COLOR, TEXT_COLOR = (40, 150, 70), (200, 50, 40), (255, 255, 255)
CAPTION_HEIGHT = 18


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
    """Sort records by failures first, then by seed."""
    return sorted(records, key=lambda record: (record.success, record.seed))


def grid_video(clips: Sequence[VideoClip]) -> bytes:
    """Encode at least one clip into one MP4, row by row.

    All clips have the same size. A short one repeats its last frame.
    """
    columns = math.ceil(math.sqrt(len(clips)))
    rows = math.ceil(len(clips) / columns)
    videos = [decode_video(clip.video) for clip in clips]
    length = max(len(frames) for frames in videos)
    height, width = videos[0].shape[1:3]
    tile_height, tile_width = height + CAPTION_HEIGHT + BORDER, width + 2 * BORDER
    grid = np.zeros((length, rows * tile_height, columns * tile_width, 3), np.uint8)
    for number, (clip, frames) in enumerate(zip(clips, videos, strict=True)):
        top, left = (number // columns) * tile_height, (number % columns) * tile_width
        grid[:, top : top + tile_height, left : left + tile_width] = _tile(
            clip, tile_height, tile_width
        )
        interior = grid[:, top + CAPTION_HEIGHT :, left + BORDER :][:, :height, :width]
        interior[: len(frames)], interior[len(frames) :] = frames, frames[-1]
    return encode_video(grid)


def _tile(clip: VideoClip, height: int, width: int) -> np.ndarray:
    """Draw the coloured frame of a clip with its caption."""
    color = SUCCESS_COLOR if clip.record.success else FAILURE_COLOR
    image = Image.new("RGB", (width, height), color)
    ImageDraw.Draw(image).text((BORDER, BORDER), clip.caption, fill=TEXT_COLOR)
    return np.asarray(image)
