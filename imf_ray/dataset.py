"""Checks and shows a data set: `imf-ray dataset check DIR`, `imf-ray dataset inspect DIR`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imf_ray.cli import run_command
from imf_ray.command import Command
from imf_ray.config import shell_override
from imf_ray.errors import UserError
from imf_ray.folders import display
from imf_ray.schema import Config
from imf_ray.storage import AnyPath, display_path, local_dir, parse_path
from imf_ray.terminal import console

if TYPE_CHECKING:
    from imf_ray.data.episodes import EpisodeMetadata

NEW_RUN = "my_run"
"""Name of the run in the command that is printed at the end."""


def main(config: Config, overrides: Sequence[str], arguments: Sequence[str]) -> str | None:
    """Check or show the episodes of a data set.

    check DIR reads every file and prints one line for each: valid, or why it is invalid, and its
    bad parts that runs can do without. The exit code is 2 if a file is invalid (docs/data.md).

    inspect DIR prints lengths, outcomes, seeds and value ranges of the valid files. It also writes
    a contact sheet of all of them and a video of the first one into storage_path/inspections.
    """
    actions = {"check": check, "inspect": inspect}
    if len(arguments) != 2 or arguments[0] not in actions:
        raise UserError(
            "An action and a folder are needed: imf-ray dataset check DIR, or inspect DIR."
        )
    return actions[arguments[0]](config, parse_path(arguments[1]))


def check(config: Config, folder: AnyPath) -> str:
    """Print a line for each file: its format and length, its bad parts, or why it is invalid.

    Raises:
        UserError: a file is invalid, or `data.channel_order` contradicts a file.
    """
    from imf_ray.data.channel_order import check_channel_order
    from imf_ray.data.check_pool import invalid_reason
    from imf_ray.data.episode_files import require_episodes
    from imf_ray.data.episodes import EpisodeMetadata
    from imf_ray.data.index import check_dataset
    from imf_ray.data.visualize import check_table

    results = check_dataset(folder, require_episodes(folder, str), config.data.format, force=True)
    console.print(check_table(results))
    images = {r.path: r.images for r in results.values() if isinstance(r, EpisodeMetadata)}
    check_channel_order(images, config.data.channel_order, folder)
    if num_invalid := sum(invalid_reason(result) is not None for result in results.values()):
        raise UserError(f"{num_invalid} of {len(results)} files are invalid (see above).")
    console.print(f"All {len(results)} files are valid.")
    return f"dataset inspect {display(folder)}"


def inspect(config: Config, folder: AnyPath) -> str | None:
    """Print tables of the valid files, and write a contact sheet and a video.

    Raises:
        UserError: see `check`; one valid file is enough.
    """
    from imf_ray.data import visualize
    from imf_ray.data.channel_order import check_channel_order
    from imf_ray.data.check_pool import invalid_reason
    from imf_ray.data.episode_files import require_episodes
    from imf_ray.data.episodes import EpisodeMetadata
    from imf_ray.data.index import check_dataset
    from imf_ray.files import write_atomically

    files = require_episodes(folder, str)
    episodes: list[EpisodeMetadata] = []
    for path, result in check_dataset(folder, files, config.data.format).items():
        if isinstance(result, EpisodeMetadata) and invalid_reason(result) is None:
            episodes.append(result)
        else:
            console.print(f"Skipped {path.name}: {invalid_reason(result)}", soft_wrap=True)
    if not episodes:
        raise UserError(f"None of the {len(files)} files in {folder} is valid (see above).")
    order = config.data.channel_order
    check_channel_order({e.path: e.images for e in episodes}, order, folder)
    console.print(visualize.episodes_summary(episodes, order))
    for table in visualize.statistics_tables(episodes):
        console.print(table)
    cameras = sorted(set.intersection(*(set(episode.cameras) for episode in episodes)))
    if not cameras:
        console.print(
            "No contact sheet and no video were written, because no camera is in all episodes."
        )
        return None
    output = local_dir(config.storage_path) / "inspections" / folder.name
    video = f"{Path(episodes[0].path).stem}.mp4"
    write_atomically(
        output / "contact_sheet.png", visualize.contact_sheet(episodes, cameras, order)
    )
    write_atomically(output / video, visualize.episode_video(episodes[0], cameras, order))
    for name in ("contact_sheet.png", video):
        console.print(display_path(output / name), soft_wrap=True)
    return f"train {shell_override('data.dataset_dir', str(folder))} run_name={NEW_RUN}"


COMMAND = Command(
    "dataset",
    main,
    examples=("check data/cpu_transfer", "inspect data/cpu_transfer"),
    positional="check|inspect DIR",
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
