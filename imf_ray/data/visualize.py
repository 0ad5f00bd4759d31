"""Views of a data set: tables for the terminal, a contact sheet, a video of an episode."""

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
"""Most episodes in the contact sheet."""
SHEET_STEPS = 3
"""Images of each camera: the first, the last, and evenly spaced ones between."""
TILE = 128
"""Side of an image in the contact sheet and in the video, in pixels."""
CAPTION_HEIGHT = 14
"""Height of an image's caption in the contact sheet, in pixels."""


def check_table(results: Mapping[AnyPath, CheckResult]) -> Table:
    """A row per file: its format and length, or why it is invalid."""
    table = Table("file", "format", "steps", "result", box=None)
    for path, result in results.items():
        if isinstance(result, str):
            table.add_row(path.name, "", "", result, style="red")
        else:
            table.add_row(path.name, result.format, str(result.length), "good")
    return table


def episode_table(episodes: Sequence[EpisodeMetadata]) -> Table:
    """A row per episode: length, outcome, seed, shapes, and unused datasets."""
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


def range_table(episodes: Sequence[EpisodeMetadata]) -> Table:
    """Minimum, mean, maximum and standard deviation of each dimension of each vector dataset."""
    table = Table("dimension", "min", "mean", "max", "std", box=None)
    for name in episodes[0].stats:
        stats = merge([episode.stats[name] for episode in episodes])
        columns = zip(stats.min, stats.mean, stats.max, stats.std, strict=True)
        for number, row in enumerate(columns):
            table.add_row(f"{name}[{number}]", *(f"{value:.4f}" for value in row))
    return table


def contact_sheet(episodes: Sequence[EpisodeMetadata], cameras: Sequence[str]) -> bytes:
    """A PNG with a row per episode and `SHEET_STEPS` images of each camera.

    Of more than `SHEET_EPISODES` episodes, evenly spaced ones are shown.
    """
    shown = [episodes[n] for n in _evenly_spaced(len(episodes), SHEET_EPISODES)]
    columns = len(cameras) * SHEET_STEPS
    sheet = Image.new("RGB", (columns * TILE, len(shown) * (TILE + CAPTION_HEIGHT)), "black")
    draw = ImageDraw.Draw(sheet)
    for row, episode in enumerate(shown):
        top = row * (TILE + CAPTION_HEIGHT)
        steps = _evenly_spaced(episode.length, SHEET_STEPS)
        for column in range(columns):
            camera = cameras[column // SHEET_STEPS]
            step = steps[min(column % SHEET_STEPS, len(steps) - 1)]
            image = _read_tiles(episode, (camera,), (step, step + 1))[camera][0]
            sheet.paste(Image.fromarray(image), (column * TILE, top + CAPTION_HEIGHT))
            caption = f"{Path(episode.path).stem} {camera} {step}"
            draw.text((column * TILE + 2, top), caption, fill="white")
    file = io.BytesIO()
    sheet.save(file, format="PNG")
    return file.getvalue()


def episode_video(episode: EpisodeMetadata, cameras: Sequence[str]) -> bytes:
    """An MP4 of an episode, with its cameras side by side."""
    tiles = _read_tiles(episode, tuple(cameras), (0, episode.length))
    return encode_video(np.concatenate([tiles[camera] for camera in cameras], axis=2))


def _read_tiles(
    episode: EpisodeMetadata, cameras: tuple[str, ...], steps: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Images (n, TILE, TILE, 3) of each camera at steps [steps[0], steps[1])."""
    fields = EpisodeFields(cameras, action_space=episode.action_spaces[0], image_size=TILE)
    return dict(read_slice(episode.ref, fields, steps, (0, 0)).images)


def _evenly_spaced(count: int, limit: int) -> list[int]:
    """Up to `limit` of the numbers below `count`, including the first and the last."""
    return sorted({round(n) for n in np.linspace(0, count - 1, min(count, limit))})
