"""Videos with captions and borders."""

from __future__ import annotations

import numpy as np
import pytest

from imf_ray.captions import LINE_HEIGHT, MARGIN, fit, wrap
from imf_ray.rollout.grid_video import (
    BORDER,
    FAILURE_COLOR,
    GAP,
    SUCCESS_COLOR,
    TEXT_COLOR,
    VideoClip,
    grid_video,
)
from imf_ray.rollout.records import EpisodeRecord
from imf_ray.video import decode_video, encode_video, frame_rate

HEIGHT, WIDTH = 96, 160
GREY, FPS = 90, 8


def clip(seed: int, success: bool, frames: int = 4, title: str = "", speed: int = 1) -> VideoClip:
    record = EpisodeRecord(seed, success, 4 if success else 1, 4, 1.0, 400, {}, "p", {})
    video = encode_video(np.full((frames, HEIGHT, WIDTH, 3), GREY, np.uint8), FPS)
    return VideoClip(record, video, title, speed)


def is_color(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    return (abs(pixels.astype(int) - color) < 40).all(-1)


def test_a_caption_says_seed_outcome_and_stage() -> None:
    assert clip(7, True).caption_lines(400) == ["seed 7: success, stage 4 of 4"]
    assert clip(7, True, speed=2).caption_lines(400) == ["seed 7: success, stage 4 of 4, 2x speed"]
    title = "00003-n_emb_96, step 1200"
    lines = clip(7, False, title=title).caption_lines(400)
    assert lines == [title, "seed 7: failure, stage 1 of 4"]
    narrow = clip(7, False, title=title).caption_lines(WIDTH)
    assert " ".join(narrow) == " ".join(lines) and len(narrow) > 2


def test_tiles_have_borders_and_legible_captions() -> None:
    clips = [clip(number, number % 2 == 0, frames=4 + number) for number in range(3)]
    video = grid_video(clips)
    frames = decode_video(video)
    assert frame_rate(video) == FPS
    assert len(frames) == 6 and frames.shape[1] % 2 == frames.shape[2] % 2 == 0
    caption_height = LINE_HEIGHT * len(clips[0].caption_lines(WIDTH + 2 * BORDER))
    cell_height = caption_height + HEIGHT + BORDER + 2 * GAP
    cell_width = WIDTH + 2 * BORDER + 2 * GAP
    for number in range(3):
        top, left = number // 2 * cell_height + GAP, number % 2 * cell_width + GAP
        cell = frames[-1, top : top + cell_height - 2 * GAP, left : left + cell_width - 2 * GAP]
        color = SUCCESS_COLOR if number % 2 == 0 else FAILURE_COLOR
        assert is_color(cell[caption_height:, : BORDER - 1], color).mean() > 0.9
        assert is_color(cell[1 - BORDER :], color).mean() > 0.9
        text = cell[:caption_height]
        assert is_color(text, color).mean() > 0.5 and is_color(text, TEXT_COLOR).sum() > 20
        image = cell[caption_height : caption_height + HEIGHT, BORDER : BORDER + WIDTH]
        assert is_color(image, (GREY, GREY, GREY)).mean() > 0.9


@pytest.mark.parametrize("color", [SUCCESS_COLOR, FAILURE_COLOR])
def test_captions_have_enough_contrast(color: tuple[int, int, int]) -> None:
    linear = [((c / 255 + 0.055) / 1.055) ** 2.4 for c in color]
    assert 1.05 / (np.dot(linear, [0.2126, 0.7152, 0.0722]) + 0.05) >= 4.5


def test_long_words_are_shortened_in_the_middle() -> None:
    name = "00003-" + "x" * 200 + "-größe_3"
    assert wrap(name, 150) == [name]
    shortened = fit(name, 150 - 2 * MARGIN)
    head, _, tail = shortened.partition("…")
    assert head.startswith("00003-") and tail.endswith("größe_3")
    assert fit("short", 150) == "short"
