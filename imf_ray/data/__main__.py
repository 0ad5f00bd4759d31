"""Looks at a data set: `python -m imf_ray.data check DIR`, `python -m imf_ray.data inspect DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from imf_ray.cli import run
from imf_ray.data.episodes import EpisodeMetadata
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.storage import AnyPath, display_path, local_dir, parse_path
from imf_ray.terminal import console

USAGE = "python -m imf_ray.data check DIR, or python -m imf_ray.data inspect DIR"


def main(config: Config, overrides: Sequence[str], arguments: Sequence[str]) -> None:
    """`check DIR`: read every file of a data set anew and print the verdict on it; the exit code is
    2 if one is bad. `inspect DIR`: print lengths, outcomes, seeds and ranges of the good ones, and
    write a contact sheet and a video of the first into `storage_path`. `data.format` says what kind
    of files they are, if that is not plain from them.
    """
    commands = {"check": check, "inspect": inspect}
    if len(arguments) != 2 or arguments[0] not in commands:
        raise UserError(f"Say what to do: {USAGE}")
    commands[arguments[0]](config, parse_path(arguments[1]))


def check(config: Config, folder: AnyPath) -> None:
    """List every file with its verdict.

    Raises:
        UserError: some are bad, or there is none.
    """
    from imf_ray.data.index import check_dataset, require_episodes
    from imf_ray.data.visualize import check_table

    files = require_episodes(folder)
    verdicts = check_dataset(folder, files, config.data.format, force=True)
    console.print(check_table(verdicts))
    bad = sum(isinstance(found, str) for found in verdicts.values())
    if bad:
        raise UserError(f"{bad} of {len(files)} files are bad.")
    console.print(f"All {len(files)} files are good.")


def inspect(config: Config, folder: AnyPath) -> None:
    """Show what the good files hold.

    Raises:
        UserError: there is no good file.
    """
    from imf_ray.data.index import check_dataset, require_episodes
    from imf_ray.data.visualize import contact_sheet, episode_table, episode_video, range_table
    from imf_ray.files import write_atomically

    files = require_episodes(folder)
    verdicts = check_dataset(folder, files, config.data.format)
    good = [found for path in files if isinstance(found := verdicts[path], EpisodeMetadata)]
    for path in files:
        if isinstance(verdicts[path], str):
            console.print(f"Left out: {verdicts[path]}", soft_wrap=True)
    if not good:
        raise UserError(f"None of the {len(files)} files of {folder} is good.")
    console.print(episode_table(good))
    # Files with other datasets have tables of their own.
    for _, group in groupby(sorted(good, key=_vectors), key=_vectors):
        console.print(range_table(list(group)))
    cameras = sorted(set.intersection(*(set(episode.cameras) for episode in good)))
    if not cameras:
        console.print("No camera is in all of them: no pictures.")
        return
    output = local_dir(config.storage_path) / "inspections" / folder.name
    video = f"{Path(good[0].path).stem}.mp4"
    write_atomically(output / "contact_sheet.png", contact_sheet(good, cameras))
    write_atomically(output / video, episode_video(good[0], cameras))
    for name in ("contact_sheet.png", video):
        console.print(display_path(output / name), soft_wrap=True)


def _vectors(episode: EpisodeMetadata) -> list[tuple[str, int]]:
    """The datasets of vectors of an episode, and their widths."""
    return sorted((name, len(stats.mean)) for name, stats in episode.stats.items())


if __name__ == "__main__":
    sys.exit(run("imf_ray.data", main, sys.argv[1:], names="check DIR, inspect DIR,"))
