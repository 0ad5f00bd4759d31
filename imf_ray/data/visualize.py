"""Views of a data set: tables for the terminal, a contact sheet, and a video of an episode."""

from __future__ import annotations

import dataclasses
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from imf_ray.captions import caption, wrap
from imf_ray.config import shell_override
from imf_ray.data.channel_order import OTHER_ORDER
from imf_ray.data.check_pool import CheckResult, invalid_reason
from imf_ray.data.episodes import EpisodeFields, EpisodeMetadata, describe_copies, find_copies
from imf_ray.data.readers import read_slice
from imf_ray.data.running_stats import merge
from imf_ray.storage import AnyPath
from imf_ray.tables import Column, FittedTable
from imf_ray.video import encode_video

SHEET_EPISODES = 12
"""Maximum number of episodes in the contact sheet."""
IMAGES_PER_CAMERA = 3
"""Number of images per camera and episode in the contact sheet, evenly spaced in time."""
TILE_SIZE = 128
"""Side of an image in the contact sheet and in the video, in pixels."""
BORDER, TILE_GAP, CAMERA_GAP = 1, 6, 14
"""Widths in pixels of the line around an image, and of the gaps between images and cameras."""
STRIP_WIDTH = IMAGES_PER_CAMERA * (TILE_SIZE + 2 * BORDER) + (IMAGES_PER_CAMERA - 1) * TILE_GAP
"""Width in pixels of the images of one camera and episode."""
BACKGROUND, BORDER_COLOR = (255, 255, 255), (60, 60, 60)
CONTENTS = ("format", "cameras", "vectors", "unused")
"""What episodes of one block have in common, see `episodes_summary`."""
MAX_NAMES = 8
"""Number of names or ranges that are listed one by one."""


def check_table(results: Mapping[AnyPath, CheckResult]) -> FittedTable:
    """Return a table with one row per file: its format, its length, and what cannot be used."""
    rows = []
    copies = find_copies(r for r in results.values() if isinstance(r, EpisodeMetadata))
    for path, result in results.items():
        if isinstance(result, str):
            rows.append((path.name, "", "", Text(result, style="red")))
            continue
        problem = invalid_reason(result)
        others = [other for other in result.problems.values() if other != problem]
        text = "; ".join([problem or "valid", *(f"not usable: {other}" for other in others)])
        if result.path in copies:
            text += f"; a copy of {Path(copies[result.path]).name}"
        style = "" if problem is None else "red"
        rows.append((path.name, result.format, str(result.length), Text(text, style=style)))
    names, formats, lengths, texts = zip(*rows, strict=True)
    return FittedTable(
        [
            Column("file", names, is_name=True),
            Column("format", formats),
            Column("steps", lengths),
            Column("result", texts, is_sentence=True),
        ]
    )


def features_table(episode: EpisodeMetadata) -> FittedTable:
    """Return a table with the parts of an episode, their sizes, and what a run uses them for."""
    uses = _feature_uses(episode)
    cameras = {name: camera for camera, name in episode.features.cameras.items()}
    rows = []
    for name in dict.fromkeys([*uses, *episode.stats, *episode.unused_datasets]):
        size = ""
        if name in episode.stats:
            size = str(len(episode.stats[name].mean))
        elif cameras.get(name) in episode.images:
            height, width = episode.cameras[cameras[name]]
            size = f"{height}x{width}"
        rows.append((name, size, uses.get(name, "not used")))
    names, sizes, used = zip(*rows, strict=True)
    return FittedTable(
        [Column("part", names, is_name=True), Column("size", sizes), Column("used as", used)]
    )


def feature_options(episode: EpisodeMetadata) -> str:
    """Return the options that name the parts a run uses by default, as they are typed."""
    features = episode.features
    names: dict[str, list[str]] = {"state": list(features.state)}
    for action_names in list(features.actions.values())[:1]:
        names["action"] = list(action_names)
    names.update({camera: [name] for camera, name in features.cameras.items()})
    cameras = shell_override("data.camera_names", list(episode.images))
    if features.image_group is not None:  # the parts of our own format have fixed names
        return cameras
    return f"{shell_override('data.features', names)} {cameras}"


def _feature_uses(episode: EpisodeMetadata) -> dict[str, str]:
    """Return what a run uses each part of an episode for, by the name of the part."""
    features = episode.features
    actions = {name: f"action ({space})" for space, n in features.actions.items() for name in n}
    return {
        **dict.fromkeys(features.state, "state"),
        **{name: use for name, use in actions.items() if name not in episode.problems},
        **{name: f"camera {camera}" for camera, name in features.cameras.items()},
        **{name: f"pose of {owner}" for owner, name in features.poses.items()},
    }


def episodes_summary(episodes: Sequence[EpisodeMetadata], channel_order: str) -> Group:
    """Return a description of episodes, in which those with the same contents are one block.

    A block has the files, their lengths, outcomes and seeds, and for their contents the shapes of
    images and vectors and the unused datasets. After the first block, it has only those contents
    that differ from the first one's.

    Args:
        channel_order: value of `data.channel_order`.
    """
    blocks: dict[tuple[str, ...], list[int]] = {}
    for index, episode in enumerate(episodes):
        blocks.setdefault(_contents(episode, channel_order), []).append(index)
    parts: list[RenderableType] = []
    first = next(iter(blocks))
    for contents, indices in blocks.items():
        rows = _common([episodes[index] for index in indices])
        for name, text, text_of_first in zip(CONTENTS, contents, first, strict=True):
            if contents == first or text != text_of_first:
                rows[name] = text
        if contents != first:
            rows["otherwise"] = "as above"
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(overflow="fold")
        for name, text in rows.items():
            table.add_row(f"  {name}", text)
        noun = "episode" if len(indices) == 1 else "episodes"
        files = _ranges(indices, [_name(episode) for episode in episodes])
        parts += [Text(f"{len(indices)} {noun}: {files}", style="bold"), table, ""]
    if copies := find_copies(episodes):
        parts += [f"{len(copies)} copies of other episodes: {describe_copies(copies)}", ""]
    return Group(*parts)


def _contents(episode: EpisodeMetadata, channel_order: str) -> tuple[str, ...]:
    """Return the texts of `CONTENTS`."""
    cameras: dict[str, list[str]] = {}
    for name, images in episode.images.items():
        description = f"{images.height}x{images.width} {images.describe(channel_order)}"
        cameras.setdefault(description, []).append(name)
    unused = dict.fromkeys([*episode.unused_datasets, *episode.problems])
    return (
        episode.format,
        "; ".join(f"{', '.join(names)}: {text}" for text, names in cameras.items()) or "none",
        ", ".join(f"{name} {len(stats.mean)}" for name, stats in episode.stats.items()) or "none",
        ", ".join(unused) or "none",
    )


def _common(episodes: Sequence[EpisodeMetadata]) -> dict[str, str]:
    """Return lengths, outcomes and seeds of episodes; an attribute that none has is left out."""
    lengths = [episode.length for episode in episodes]
    total = f"{sum(lengths)} in total"
    if min(lengths) == max(lengths):
        rows = {"steps": f"{lengths[0]} each, {total}"}
    else:
        shortest, longest = lengths.index(min(lengths)), lengths.index(max(lengths))
        rows = {
            "steps": f"{min(lengths)} ({_name(episodes[shortest])}) to {max(lengths)} "
            f"({_name(episodes[longest])}), {total}"
        }
    outcomes = {
        _name(e): bool(e.attributes["success"]) for e in episodes if "success" in e.attributes
    }
    if outcomes:
        failed = [name for name, success in outcomes.items() if not success]
        rows["success"] = f"{len(outcomes) - len(failed)} of {len(outcomes)}"
        rows["success"] += f"; not: {_abridged(failed)}" if failed else ""
    seeds = [episode.attributes["seed"] for episode in episodes if "seed" in episode.attributes]
    if seeds:
        is_numbered = all(isinstance(seed, int) for seed in seeds)
        rows["seeds"] = _ranges(seeds) if is_numbered else _abridged(list(map(str, seeds)))
    return rows


def _name(episode: EpisodeMetadata) -> str:
    return Path(episode.path).name


def _abridged(names: Sequence[str]) -> str:
    """Return a list of names, of which only the first `MAX_NAMES` are written out."""
    others = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {others} more" if others > 0 else "")


def _ranges(numbers: Iterable[int], names: Sequence[str] | None = None) -> str:
    """Return the ranges of consecutive numbers, such as `0 to 23, 30`.

    Args:
        names: text of each number, if it is not written itself.
    """
    ranges: list[list[int]] = []
    for number in sorted(set(numbers)):
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1].append(number)
        else:
            ranges.append([number])
    ends = [[part[0]] if len(part) == 1 else [part[0], part[-1]] for part in ranges]
    texts = [" to ".join(names[end] if names else str(end) for end in part) for part in ends]
    return _abridged(texts)


def statistics_tables(episodes: Sequence[EpisodeMetadata]) -> list[FittedTable]:
    """Return a table for each group of episodes whose vectors have equal names and widths."""
    groups = itertools.groupby(sorted(episodes, key=_vector_widths), key=_vector_widths)
    return [statistics_table(list(group)) for _, group in groups]


def _vector_widths(episode: EpisodeMetadata) -> list[tuple[str, int]]:
    """Return the name and width of each vector dataset of an episode, sorted by name."""
    return sorted((name, len(stats.mean)) for name, stats in episode.stats.items())


def statistics_table(episodes: Sequence[EpisodeMetadata]) -> FittedTable:
    """Return a table with the statistics of each dimension of each vector dataset.

    Consecutive dimensions with equal rows are one row.
    """
    rows: list[tuple[str, ...]] = []
    for name in episodes[0].stats:
        stats = merge([episode.stats[name] for episode in episodes])
        values = zip(stats.min, stats.mean, stats.max, stats.std, strict=True)
        texts = [tuple(f"{value:z.4f}" for value in row) for row in values]
        for row, group in itertools.groupby(enumerate(texts), key=lambda item: item[1]):
            first, *others = (dimension for dimension, _ in group)
            end = f"-{others[-1]}" if others else ""
            rows.append((f"{name}[{first}{end}]", *row))
    titles = ("dimension", "min", "mean", "max", "std")
    cells = zip(*rows, strict=True)
    names, *numbers = itertools.starmap(Column, zip(titles, cells, strict=True))
    return FittedTable([dataclasses.replace(names, is_name=True), *numbers])


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
    header = [f"Colors that a policy is trained on with data.channel_order={channel_order}:"]
    for camera in cameras:
        stored = {episode.images[camera].describe(channel_order) for episode in shown}
        header.append(f"{camera}: {'; '.join(sorted(stored))}")
    rows = [
        _in_row([_strip(episode, camera, channel_order) for camera in cameras], CAMERA_GAP)
        for episode in shown
    ]
    width = rows[0].width
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
            else Image.new("RGB", (STRIP_WIDTH, 1), BACKGROUND)
            for camera in cameras
        ]
        rows += [caption(wrap(title, width), width), _in_row(strips, CAMERA_GAP)]
    lines = [line for text in header for line in wrap(text, width)]
    file = io.BytesIO()
    _in_column([caption(lines, width), *rows], CAMERA_GAP, margin=CAMERA_GAP).save(
        file, format="PNG"
    )
    return file.getvalue()


def episode_video(episode: EpisodeMetadata, cameras: Sequence[str], channel_order: str) -> bytes:
    """Return an MP4 of an episode, with its cameras side by side and captions above them."""
    tiles = _read_tiles(episode, tuple(cameras), (0, episode.length), channel_order)
    columns = []
    for camera in cameras:
        captions = (_caption(episode, camera, step, TILE_SIZE) for step in range(episode.length))
        strips = np.stack([np.asarray(image) for image in captions])
        columns.append(np.concatenate([strips, tiles[camera]], axis=1))
    return encode_video(np.concatenate(columns, axis=2))


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
    steps = _evenly_spaced(episode.length, IMAGES_PER_CAMERA)
    tiles = []
    for column in range(IMAGES_PER_CAMERA):
        step = steps[min(column, len(steps) - 1)]
        image = _read_tiles(episode, (camera,), (step, step + 1), channel_order)[camera][0]
        framed = ImageOps.expand(Image.fromarray(image), BORDER, fill=BORDER_COLOR)
        tiles.append(_in_column([_caption(episode, camera, step, framed.width), framed], 0))
    return _in_row(tiles, TILE_GAP)


def _caption(episode: EpisodeMetadata, camera: str, step: int, width: int) -> Image.Image:
    """Return the caption of an image."""
    return caption([f"{camera}, step {step}", Path(episode.path).stem], width)


def _in_row(images: Sequence[Image.Image], gap: int) -> Image.Image:
    """Return images side by side, with a gap in pixels between them."""
    width = sum(image.width for image in images) + gap * (len(images) - 1)
    row = Image.new("RGB", (width, max(image.height for image in images)), BACKGROUND)
    left = 0
    for image in images:
        row.paste(image, (left, 0))
        left += image.width + gap
    return row


def _in_column(images: Sequence[Image.Image], gap: int, margin: int = 0) -> Image.Image:
    """Return images one below the other, with a gap between and a margin around them."""
    height = sum(image.height for image in images) + gap * (len(images) - 1)
    width = max(image.width for image in images)
    column = Image.new("RGB", (width + 2 * margin, height + 2 * margin), BACKGROUND)
    top = margin
    for image in images:
        column.paste(image, (margin, top))
        top += image.height + gap
    return column


def _evenly_spaced(count: int, limit: int) -> list[int]:
    """Return up to `limit` evenly spaced numbers from 0 to count - 1, including both."""
    return sorted({round(n) for n in np.linspace(0, count - 1, min(count, limit))})
