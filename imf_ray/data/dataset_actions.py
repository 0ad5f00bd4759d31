"""The actions of `imf-ray dataset`."""

from __future__ import annotations

from pathlib import Path

from imf_ray.config import shell_override
from imf_ray.data import visualize
from imf_ray.data.channel_order import check_channel_order
from imf_ray.data.check_pool import invalid_reason
from imf_ray.data.dataset_folder import find_dataset
from imf_ray.data.episodes import EpisodeMetadata
from imf_ray.data.index import check_dataset
from imf_ray.errors import UserError
from imf_ray.files import write_atomically
from imf_ray.folders import display
from imf_ray.schema import Config
from imf_ray.storage import AnyPath, display_path, local_dir
from imf_ray.terminal import console

NEW_RUN = "my_run"
"""Name of the run in the command that is printed at the end."""


def check(config: Config, folder: AnyPath) -> str:
    """Print a line for each file: its format and length, its bad parts, or why it is invalid.

    Raises:
        UserError: a file is invalid, or `data.channel_order` contradicts a file.
    """
    format, paths = find_dataset(folder, config.data.format, str)
    results = check_dataset(folder, paths, format, config.data.features, force=True)
    console.print(visualize.check_table(results))
    images = {r.path: r.images for r in results.values() if isinstance(r, EpisodeMetadata)}
    check_channel_order(images, config.data.channel_order, folder)
    if num_invalid := sum(invalid_reason(result) is not None for result in results.values()):
        raise UserError(f"{num_invalid} of {len(results)} episodes are invalid (see above).")
    console.print(f"All {len(results)} episodes are valid.")
    return f"dataset inspect {display(folder)}"


def features(config: Config, folder: AnyPath) -> str:
    """Print the parts of the first episode, what a run would use, and the options that say so.

    Raises:
        UserError: there are no episodes, or the first one cannot be read.
    """
    format, paths = find_dataset(folder, config.data.format, str)
    (result,) = check_dataset(folder, paths[:1], format, config.data.features).values()
    if isinstance(result, str):
        raise UserError(result)
    rate = result.attributes.get("control_hz")
    at_rate = f" at {rate} Hz" if rate is not None else ""
    console.print(
        f"{paths[0].name} of {len(paths)}: {result.length} steps{at_rate}, format {result.format}"
    )
    console.print(visualize.features_table(result))
    for problem in result.problems.values():
        console.print(f"Not usable: {problem}.", soft_wrap=True)
    options = visualize.feature_options(result)
    console.print(f"Options that say the same: {options}", soft_wrap=True)
    return f"train {shell_override('data.dataset_dir', str(folder))} run_name={NEW_RUN}"


def inspect(config: Config, folder: AnyPath) -> str | None:
    """Print tables of the valid files, and write a contact sheet and a video.

    Raises:
        UserError: see `check`; one valid file is enough.
    """
    format, paths = find_dataset(folder, config.data.format, str)
    episodes: list[EpisodeMetadata] = []
    for path, result in check_dataset(folder, paths, format, config.data.features).items():
        if isinstance(result, EpisodeMetadata) and invalid_reason(result) is None:
            episodes.append(result)
        else:
            console.print(f"Skipped {path.name}: {invalid_reason(result)}", soft_wrap=True)
    if not episodes:
        raise UserError(f"None of the {len(paths)} episodes in {folder} is valid (see above).")
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
