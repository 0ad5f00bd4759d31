"""Checks and shows a data set: `imf-ray dataset check DIR`, `imf-ray dataset inspect DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import AnyPath, display_path, local_dir, parse_path
from imf_ray.terminal import console

if TYPE_CHECKING:
    from imf_ray.data.episodes import EpisodeMetadata


def main(config: Config, overrides: Sequence[str], arguments: Sequence[str]) -> None:
    """Check or show the episodes of a data set.

    check DIR reads every file again and prints whether it is valid; the exit code is 2 if one is
    not.

    inspect DIR prints lengths, outcomes, seeds and value ranges of the valid files, and writes a
    contact sheet and a video of the first one into storage_path/inspections.
    """
    actions = {"check": check, "inspect": inspect}
    if len(arguments) != 2 or arguments[0] not in actions:
        raise UserError(
            "Name an action and a folder: python -m imf_ray.dataset check DIR, or "
            "python -m imf_ray.dataset inspect DIR."
        )
    actions[arguments[0]](config, parse_path(arguments[1]))


def check(config: Config, folder: AnyPath) -> None:
    """Print a line for each file: its format and length, or why it is invalid.

    Raises:
        UserError: a file is invalid, or the folder has no episodes.
    """
    from imf_ray.data.index import check_dataset, require_episodes
    from imf_ray.data.visualize import check_table

    files = require_episodes(folder)
    results = check_dataset(folder, files, config.data.format, force=True)
    console.print(check_table(results))
    num_bad = sum(isinstance(result, str) for result in results.values())
    if num_bad:
        raise UserError(f"{num_bad} of {len(files)} files are bad.")
    console.print(f"All {len(files)} files are good.")


def inspect(config: Config, folder: AnyPath) -> None:
    """Print tables of the valid files, and write a contact sheet and a video.

    Raises:
        UserError: there is no valid file.
    """
    from imf_ray.data.episodes import EpisodeMetadata
    from imf_ray.data.index import check_dataset, require_episodes
    from imf_ray.data.visualize import contact_sheet, episode_table, episode_video, range_table
    from imf_ray.files import write_atomically

    files = require_episodes(folder)
    results = check_dataset(folder, files, config.data.format)
    episodes = [r for path in files if isinstance(r := results[path], EpisodeMetadata)]
    for path in files:
        if isinstance(results[path], str):
            console.print(f"Left out: {results[path]}", soft_wrap=True)
    if not episodes:
        raise UserError(f"None of the {len(files)} files of {folder} is good.")
    console.print(episode_table(episodes))
    # Files with different vectors get separate tables.
    for _, group in groupby(sorted(episodes, key=_vector_widths), key=_vector_widths):
        console.print(range_table(list(group)))
    cameras = sorted(set.intersection(*(set(episode.cameras) for episode in episodes)))
    if not cameras:
        console.print("No camera is in all episodes: no contact sheet and no video.")
        return
    output = local_dir(config.storage_path) / "inspections" / folder.name
    video = f"{Path(episodes[0].path).stem}.mp4"
    write_atomically(output / "contact_sheet.png", contact_sheet(episodes, cameras))
    write_atomically(output / video, episode_video(episodes[0], cameras))
    for name in ("contact_sheet.png", video):
        console.print(display_path(output / name), soft_wrap=True)


def _vector_widths(episode: EpisodeMetadata) -> list[tuple[str, int]]:
    """Names and widths of an episode's vector datasets."""
    return sorted((name, len(stats.mean)) for name, stats in episode.stats.items())


COMMAND = Command(
    "dataset",
    main,
    examples=("check data/cpu_transfer", "inspect data/cpu_transfer"),
    positional="check|inspect DIR",
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
