"""What a data set looks like: tables for the terminal, a contact sheet, a video of an episode."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from rich.table import Table

from imf_ray.data.episodes import EpisodeFields, EpisodeMetadata, read_slice
from imf_ray.data.readers import center_crop_resize
from imf_ray.data.running_stats import merge
from imf_ray.storage import AnyPath
from imf_ray.video import encode_video

SHEET_EPISODES = 12
SHEET_MOMENTS = 3
"""Pictures of each camera: the first, the last, and what lies evenly between."""
TILE = 128
"""Side of a picture in the contact sheet and in the video, in pixels."""
CAPTION_HEIGHT = 14


def check_table(verdicts: Mapping[AnyPath, EpisodeMetadata | str]) -> Table:
    """A line for each file: what it is, or why it is bad."""
    table = Table("file", "format", "steps", "verdict", box=None)
    for path, found in verdicts.items():
        if isinstance(found, str):
            table.add_row(path.name, "", "", found, style="red")
        else:
            table.add_row(path.name, found.format, str(found.length), "good")
    return table


def episode_table(episodes: Sequence[EpisodeMetadata]) -> Table:
    """A line for each episode: length, outcome, seed, shapes, and datasets that are not used."""
    columns = ("file", "format", "steps", "success", "seed", "cameras", "vectors", "not read")
    table = Table(*columns, box=None)
    for episode in episodes:
        sizes = (f"{name} {height}x{width}" for name, (height, width) in episode.cameras.items())
        widths = (f"{name} {len(found.mean)}" for name, found in episode.moments.items())
        table.add_row(
            Path(episode.path).name,
            episode.format,
            str(episode.length),
            str(episode.attributes.get("success", "-")),
            str(episode.attributes.get("seed", "-")),
            ", ".join(sizes) or "-",
            ", ".join(widths),
            ", ".join(episode.unread) or "-",
        )
    return table


def range_table(episodes: Sequence[EpisodeMetadata]) -> Table:
    """Minimum, mean, maximum and deviation of each dimension of each dataset of vectors."""
    table = Table("dimension", "min", "mean", "max", "std", box=None)
    for name in episodes[0].moments:
        found = merge([episode.moments[name] for episode in episodes])
        columns = zip(found.min, found.mean, found.max, found.std, strict=True)
        for number, row in enumerate(columns):
            table.add_row(f"{name}[{number}]", *(f"{value:.4f}" for value in row))
    return table


def contact_sheet(episodes: Sequence[EpisodeMetadata], cameras: Sequence[str]) -> bytes:
    """PNG with a row for each of up to `SHEET_EPISODES` episodes, evenly chosen: what each camera
    sees at `SHEET_MOMENTS` moments."""
    chosen = [episodes[n] for n in _evenly(len(episodes), SHEET_EPISODES)]
    columns = len(cameras) * SHEET_MOMENTS
    sheet = Image.new("RGB", (columns * TILE, len(chosen) * (TILE + CAPTION_HEIGHT)), "black")
    draw = ImageDraw.Draw(sheet)
    for row, episode in enumerate(chosen):
        top = row * (TILE + CAPTION_HEIGHT)
        for column in range(columns):
            camera = cameras[column // SHEET_MOMENTS]
            moments = _evenly(episode.length, SHEET_MOMENTS)
            step = moments[min(column % SHEET_MOMENTS, len(moments) - 1)]
            picture = _pictures(episode, (camera,), (step, step + 1))[camera][0]
            sheet.paste(Image.fromarray(picture), (column * TILE, top + CAPTION_HEIGHT))
            caption = f"{Path(episode.path).stem} {camera} {step}"
            draw.text((column * TILE + 2, top), caption, fill="white")
    file = io.BytesIO()
    sheet.save(file, format="PNG")
    return file.getvalue()


def episode_video(episode: EpisodeMetadata, cameras: Sequence[str]) -> bytes:
    """MP4 of an episode, its cameras side by side."""
    pictures = _pictures(episode, tuple(cameras), (0, episode.length))
    return encode_video(np.concatenate([pictures[camera] for camera in cameras], axis=2))


def _pictures(
    episode: EpisodeMetadata, cameras: tuple[str, ...], steps: tuple[int, int]
) -> dict[str, np.ndarray]:
    selection = EpisodeFields(cameras, action_space=episode.action_spaces[0])
    images = read_slice(episode.source, selection, steps, (0, 0)).images
    return {camera: center_crop_resize(frames, TILE) for camera, frames in images.items()}


def _evenly(count: int, most: int) -> list[int]:
    """Up to `most` of the numbers below `count`, first and last included."""
    return sorted({round(n) for n in np.linspace(0, count - 1, min(count, most))})
