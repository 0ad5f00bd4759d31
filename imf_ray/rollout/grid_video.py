"""Videos of episodes with captions: one tile per episode, with a coloured border."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imf_ray.captions import LINE_HEIGHT, caption, wrap
from imf_ray.rollout.artifacts import VideoFormat
from imf_ray.rollout.records import EpisodeRecord
from imf_ray.video import decode_video, encode_video, frame_rate

TILE_FORMAT = VideoFormat((180, 240), fps=8, speed=2)
"""Format of the videos in a grid. In the default format, they take longer than the evaluation."""

BORDER = 4
"""Width in pixels of a tile's border, which is green for success and red for failure."""
GAP = 2
"""Width in pixels of the white space around each tile."""
SUCCESS_COLOR, FAILURE_COLOR, TEXT_COLOR = (20, 110, 50), (180, 35, 30), (255, 255, 255)


@dataclass(frozen=True)
class VideoClip:
    """An episode and its video."""

    record: EpisodeRecord
    video: bytes
    title: str = ""
    """Text above the caption, such as the policy."""
    speed: int = 1
    """Simulated seconds per second of the video."""

    def caption_lines(self, width: int) -> list[str]:
        """Return the lines above the video, which are wrapped at a width in pixels."""
        record = self.record
        outcome = "success" if record.success else "failure"
        result = f"seed {record.seed}: {outcome}, stage {record.max_stage} of {record.num_stages}"
        if self.speed != 1:
            result += f", {self.speed}x speed"
        return [*wrap(self.title, width), *wrap(result, width)]


def failures_first(records: Sequence[EpisodeRecord]) -> list[EpisodeRecord]:
    """Return the records with failures first, each part sorted by seed."""
    return sorted(records, key=lambda record: (record.success, record.seed))


def grid_video(clips: Sequence[VideoClip]) -> bytes:
    """Encode one or more clips as an MP4 in which they play next to each other, row by row.

    All clips must have the same frame size and rate. A clip that is shorter than the longest one
    repeats its last frame.
    """
    columns = math.ceil(math.sqrt(len(clips)))
    rows = math.ceil(len(clips) / columns)
    videos = [decode_video(clip.video) for clip in clips]
    num_frames = max(len(frames) for frames in videos)
    height, width = videos[0].shape[1:3]
    captions = [clip.caption_lines(width + 2 * BORDER) for clip in clips]
    caption_height = LINE_HEIGHT * max(map(len, captions))
    tile_height, tile_width = caption_height + height + BORDER, width + 2 * BORDER
    cell_height, cell_width = tile_height + 2 * GAP, tile_width + 2 * GAP
    # H.264 needs an even height and width.
    size = (math.ceil(rows * cell_height / 2) * 2, math.ceil(columns * cell_width / 2) * 2)
    grid = np.full((num_frames, *size, 3), 255, np.uint8)
    for index, (clip, lines, frames) in enumerate(zip(clips, captions, videos, strict=True)):
        top = (index // columns) * cell_height + GAP
        left = (index % columns) * cell_width + GAP
        color = SUCCESS_COLOR if clip.record.success else FAILURE_COLOR
        tile = grid[:, top : top + tile_height, left : left + tile_width]
        tile[:] = color
        text = np.asarray(caption(lines, tile_width, TEXT_COLOR, color))
        tile[:, : len(text)] = text
        interior = tile[:, caption_height : caption_height + height, BORDER : BORDER + width]
        interior[: len(frames)], interior[len(frames) :] = frames, frames[-1]
    return encode_video(grid, frame_rate(clips[0].video))
