"""Views of a data set: tables for the terminal, a contact sheet, and a video of an episode."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.table import Table

from imf_ray.data.check_pool import CheckResult
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
CAPTION_HEIGHT = 14
"""Height of an image's caption in the contact sheet, in pixels."""


def check_table(results: Mapping[AnyPath, CheckResult]) -> Table:
    """Return a table with one row per file: its format and length, or why it is invalid."""
    table = Table("file", "format", "steps", "result", box=None)
    for path, result in results.items():
        if isinstance(result, str):
            table.add_row(path.name, "", "", result, style="red")
        else:
            table.add_row(path.name, result.format, str(result.length), "valid")
    return table


def episode_table(episodes: Sequence[EpisodeMetadata]) -> Table:
    """Return a table with one row per episode: length, outcome, seed, shapes, unused datasets."""
    columns = ("file", "format", "steps", "success", "seed", "cameras", "vectors", "unused")
    table = Table(*columns, box=None)
    for episode in episodes:
        sizes = (f"{name} {height}x{width}" for name, (height, width) in episode.cameras.items())
        widths = (f"{name} {len(stats.mean)}" for name, stats in episode.stats.items())
        table.add_row(
            Path(episode.path).name,
            episode.format,
            str(episode.length),
            str(episode.attributes.get("success", "-")),
            str(episode.attributes.get("seed", "-")),
            ", ".join(sizes) or "-",
            ", ".join(widths),
            ", ".join(episode.unused_datasets) or "-",
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


def contact_sheet(episodes: Sequence[EpisodeMetadata], cameras: Sequence[str]) -> bytes:
    """Return a PNG with one row per episode and `IMAGES_PER_CAMERA` images of each camera.

    If there are more than `SHEET_EPISODES` episodes, it shows evenly spaced ones.
    """
    shown = [episodes[index] for index in _evenly_spaced(len(episodes), SHEET_EPISODES)]
    columns = len(cameras) * IMAGES_PER_CAMERA
    sheet = Image.new(
        "RGB", (columns * TILE_SIZE, len(shown) * (TILE_SIZE + CAPTION_HEIGHT)), "black"
    )
    draw = ImageDraw.Draw(sheet)
    for row, episode in enumerate(shown):
        top = row * (TILE_SIZE + CAPTION_HEIGHT)
        steps = _evenly_spaced(episode.length, IMAGES_PER_CAMERA)
        for column in range(columns):
            camera = cameras[column // IMAGES_PER_CAMERA]
            step = steps[min(column % IMAGES_PER_CAMERA, len(steps) - 1)]
            image = _read_tiles(episode, (camera,), (step, step + 1))[camera][0]
            sheet.paste(Image.fromarray(image), (column * TILE_SIZE, top + CAPTION_HEIGHT))
            caption = f"{Path(episode.path).stem} {camera} {step}"
            draw.text((column * TILE_SIZE + 2, top), caption, fill="white")
    file = io.BytesIO()
    sheet.save(file, format="PNG")
    return file.getvalue()


def episode_video(episode: EpisodeMetadata, cameras: Sequence[str]) -> bytes:
    """Return an MP4 of an episode, with its cameras side by side."""
    tiles = _read_tiles(episode, tuple(cameras), (0, episode.length))
    return encode_video(np.concatenate([tiles[camera] for camera in cameras], axis=2))


def _read_tiles(
    episode: EpisodeMetadata, cameras: tuple[str, ...], step_range: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Read the images (n, TILE_SIZE, TILE_SIZE, 3) of each camera in the range [start, stop)."""
    fields = EpisodeFields(cameras, action_space=episode.action_spaces[0], image_size=TILE_SIZE)
    return dict(read_slice(episode.ref, fields, step_range, (0, 0)).images)


def _evenly_spaced(count: int, limit: int) -> list[int]:
    """Return up to `limit` evenly spaced numbers from 0 to count - 1, including both."""
    return sorted({round(n) for n in np.linspace(0, count - 1, min(count, limit))})
