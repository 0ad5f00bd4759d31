"""Views of a data set: tables for the terminal, a contact sheet, and a video of an episode."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from rich.table import Table

from imf_ray.data.channel_order import OTHER_ORDER
from imf_ray.data.check_pool import CheckResult, invalid_reason
from imf_ray.data.episodes import EpisodeFields, EpisodeMetadata, read_slice
from imf_ray.data.running_stats import merge
from imf_ray.storage import AnyPath
from imf_ray.video import encode_video

SHEET_EPISODES = 12
"""Maximum number of episodes in the contact sheet."""
IMAGES_PER_CAMERA = 3
"""Number of images per camera and episode in the contact sheet, evenly spaced in time."""
TILE_SIZE = 128
"""Side of an image in the contact sheet and in the video, in pixels."""
FONT_SIZE, LINE_HEIGHT, CHARACTER_WIDTH = 12, 16, 7
"""Size of the contact sheet's text and of its lines and characters, in pixels."""


def check_table(results: Mapping[AnyPath, CheckResult]) -> Table:
    """Return a table with one row per file: its format, its length, and what cannot be used."""
    table = Table("file", "format", "steps", "result", box=None)
    for path, result in results.items():
        if isinstance(result, str):
            table.add_row(path.name, "", "", result, style="red")
            continue
        problem = invalid_reason(result)
        others = [other for other in result.problems.values() if other != problem]
        text = "; ".join([problem or "valid", *(f"not usable: {other}" for other in others)])
        style = None if problem is None else "red"
        table.add_row(path.name, result.format, str(result.length), text, style=style)
    return table


def episode_table(episodes: Sequence[EpisodeMetadata], channel_order: str) -> Table:
    """Return a table with one row per episode: length, outcome, seed, shapes, unused datasets.

    Args:
        channel_order: value of `data.channel_order`.
    """
    columns = ("file", "format", "steps", "success", "seed", "cameras", "vectors", "unused")
    table = Table(*columns, box=None)
    for episode in episodes:
        cameras = (
            f"{name} {images.height}x{images.width} {images.describe(channel_order)}"
            for name, images in episode.images.items()
        )
        widths = (f"{name} {len(stats.mean)}" for name, stats in episode.stats.items())
        table.add_row(
            Path(episode.path).name,
            episode.format,
            str(episode.length),
            str(episode.attributes.get("success", "-")),
            str(episode.attributes.get("seed", "-")),
            "\n".join(cameras) or "-",
            "\n".join(widths),
            ", ".join(dict.fromkeys([*episode.unused_datasets, *episode.problems])) or "-",
        )
    return table


def statistics_table(episodes: Sequence[EpisodeMetadata]) -> Table:
    """Return a table with the statistics of each dimension of each vector dataset."""
    table = Table("dimension", "min", "mean", "max", "std", box=None)
    for name in episodes[0].stats:
        stats = merge([episode.stats[name] for episode in episodes])
        columns = zip(stats.min, stats.mean, stats.max, stats.std, strict=True)
        for dimension, row in enumerate(columns):
            table.add_row(f"{name}[{dimension}]", *(f"{value:.4f}" for value in row))
    return table


def contact_sheet(
    episodes: Sequence[EpisodeMetadata], cameras: Sequence[str], channel_order: str
) -> bytes:
    """Return a PNG with one row per episode and `IMAGES_PER_CAMERA` images of each camera.

    Its header says how the images of each camera are stored. The last row shows each camera with an
    assumed channel order in the other order, for the first such episode. If there are more than
    `SHEET_EPISODES` episodes, the sheet shows evenly spaced ones.

    Args:
        channel_order: value of `data.channel_order`.
    """
    shown = [episodes[index] for index in _evenly_spaced(len(episodes), SHEET_EPISODES)]
    width = len(cameras) * IMAGES_PER_CAMERA * TILE_SIZE
    header = [f"Colors that a policy is trained on with data.channel_order={channel_order}:"]
    for camera in cameras:
        stored = {episode.images[camera].describe(channel_order) for episode in shown}
        header.append(f"{camera}: {'; '.join(sorted(stored))}")
    rows = [
        _arrange([_strip(episode, camera, channel_order) for camera in cameras], in_row=True)
        for episode in shown
    ]
    assumed = {
        camera: episode
        for episode in reversed(shown)  # so that the first such episode remains
        for camera in cameras
        if episode.images[camera].is_assumed(channel_order)
    }
    if assumed:
        other = {
            camera: OTHER_ORDER[episode.images[camera].read_order(channel_order)]
            for camera, episode in assumed.items()
        }
        settings = (f"data.channel_order={order}" for order in sorted(set(other.values())))
        title = f"For comparison, colors with {' or '.join(settings)}:"
        strips = [
            _strip(assumed[camera], camera, other[camera])
            if camera in other
            else Image.new("RGB", (IMAGES_PER_CAMERA * TILE_SIZE, TILE_SIZE))
            for camera in cameras
        ]
        rows += [_text([title], width, wrap=True), _arrange(strips, in_row=True)]
    file = io.BytesIO()
    _arrange([_text(header, width, wrap=True), *rows]).save(file, format="PNG")
    return file.getvalue()


def episode_video(episode: EpisodeMetadata, cameras: Sequence[str], channel_order: str) -> bytes:
    """Return an MP4 of an episode, with its cameras side by side."""
    tiles = _read_tiles(episode, tuple(cameras), (0, episode.length), channel_order)
    return encode_video(np.concatenate([tiles[camera] for camera in cameras], axis=2))


def _read_tiles(
    episode: EpisodeMetadata,
    cameras: tuple[str, ...],
    step_range: tuple[int, int],
    channel_order: str,
) -> dict[str, np.ndarray]:
    """Read the images (n, TILE_SIZE, TILE_SIZE, 3) of each camera in the range [start, stop)."""
    fields = EpisodeFields(
        cameras,
        action_space=episode.action_spaces[0],
        image_size=TILE_SIZE,
        channel_order=channel_order,
    )
    return dict(read_slice(episode.ref, fields, step_range, (0, 0)).images)


def _strip(episode: EpisodeMetadata, camera: str, channel_order: str) -> Image.Image:
    """Return `IMAGES_PER_CAMERA` images of a camera side by side, each with a caption."""
    stored = episode.images[camera]
    order = stored.read_order(channel_order) if stored.has_color else "grey"
    steps = _evenly_spaced(episode.length, IMAGES_PER_CAMERA)
    tiles = []
    for column in range(IMAGES_PER_CAMERA):
        step = steps[min(column, len(steps) - 1)]
        caption = [f"{Path(episode.path).stem}, step {step}", f"{order}, {camera}"]
        image = _read_tiles(episode, (camera,), (step, step + 1), channel_order)[camera][0]
        tiles.append(_arrange([_text(caption, TILE_SIZE), Image.fromarray(image)]))
    return _arrange(tiles, in_row=True)


def _text(lines: Sequence[str], width: int, wrap: bool = False) -> Image.Image:
    """Return lines of text. Without `wrap`, the end of a long line is cut off."""
    if wrap:
        lines = [part for line in lines for part in textwrap.wrap(line, width // CHARACTER_WIDTH)]
    image = Image.new("RGB", (width, len(lines) * LINE_HEIGHT))
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(FONT_SIZE)
    for row, line in enumerate(lines):
        draw.text((2, row * LINE_HEIGHT), line, fill="white", font=font)
    return image


def _arrange(images: Sequence[Image.Image], in_row: bool = False) -> Image.Image:
    """Return images side by side (`in_row`) or one below the other, on black."""
    widths, heights = zip(*(image.size for image in images), strict=True)
    size = (sum(widths), max(heights)) if in_row else (max(widths), sum(heights))
    sheet, offset = Image.new("RGB", size), 0
    for image in images:
        sheet.paste(image, (offset, 0) if in_row else (0, offset))
        offset += image.width if in_row else image.height
    return sheet


def _evenly_spaced(count: int, limit: int) -> list[int]:
    """Return up to `limit` evenly spaced numbers from 0 to count - 1, including both."""
    return sorted({round(n) for n in np.linspace(0, count - 1, min(count, limit))})
