"""Records scripted demonstrations: `imf-ray collect data.dataset_dir=DIR`."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imf_ray.allocation import allocate_rollout_actors
from imf_ray.claims import claim
from imf_ray.cli import run_command
from imf_ray.cluster import cluster_address, init_ray
from imf_ray.command import Command
from imf_ray.config import to_override
from imf_ray.errors import UserError
from imf_ray.progress_bars import LOADING, ProgressBars, activity
from imf_ray.schema import Config
from imf_ray.storage import display_path, is_remote, local_dir
from imf_ray.terminal import console

if TYPE_CHECKING:
    from imf_ray.demos.collect import CollectionState

BAR = "Demonstrations"
TRAINING_OPTIONS = ("recipe=", "task", "data.camera_names=")
"""Starts of the options of a collection that a training on its episodes needs as well."""
PROGRESS_LINES = 20
"""Number of progress lines of a collection if stdout is not a terminal."""


def main(config: Config, overrides: Sequence[str]) -> str:
    """Record demonstrations of the scripted expert.

    Adds episodes to the folder DIR until it has collect.num_episodes successful ones.
    data.dataset_dir=DIR is the same.
    """
    from imf_ray.data.episode_files import refuse_other_folders

    if is_remote(config.data.dataset_dir):
        raise UserError(
            f"data.dataset_dir={config.data.dataset_dir} is a URL, but demonstrations are recorded "
            "into a folder of this machine. Set data.dataset_dir to a local folder and copy it."
        )
    folder = local_dir(config.data.dataset_dir)
    refuse_other_folders(folder)
    config.data.dataset_dir = str(folder)
    with claim(folder, "choose another data.dataset_dir"):  # before the imports of `_collect`
        state = _collect(config, folder)
    attempts = len(state.seeds) + len(state.failed)
    failed_seeds = f" (seeds {state.failed})" if state.failed else ""
    console.print(f"{folder} has {len(state.seeds)} successful episodes", soft_wrap=True)
    console.print(
        f"{len(state.failed)} of {attempts} attempts failed{failed_seeds}", soft_wrap=True
    )
    kept = [item for item in overrides if item.startswith(TRAINING_OPTIONS)]
    dataset = to_override("data.dataset_dir", display_path(folder))
    return shlex.join(["train", *kept, dataset, f"run_name={folder.name}"])


def _collect(config: Config, folder: Path) -> CollectionState:
    """Record episodes into a folder that is claimed."""
    with activity(LOADING):
        from imf_ray.data.episode_files import list_episodes
        from imf_ray.data.index import require_extendable
        from imf_ray.demos.collect import collect_episodes
        from imf_ray.demos.recorder import DemoRecorder

    existing = list_episodes(folder)
    if existing:  # they must have the configured cameras and shapes
        require_extendable(config)
    # If the task's env cannot be created or rendered, fail here, before Ray starts.
    with activity("Checking the task"):
        recorder = DemoRecorder(config.task, config.data.camera_names)
        if cluster_address(config) is None and len(existing) < config.collect.num_episodes:
            recorder.check_images()
        recorder.close()
    resources = allocate_rollout_actors(config, init_ray(config))
    with ProgressBars(lines=PROGRESS_LINES) as bars:
        bars.start(BAR, config.collect.num_episodes)

        def show(state: CollectionState) -> None:
            failed = f"{len(state.failed)} failed"
            bars.update(BAR, len(state.seeds), config.collect.num_episodes, failed)

        return collect_episodes(
            folder,
            config.collect.num_episodes,
            config.collect.seed,
            config.task,
            config.data.camera_names,
            workers=resources.num_actors,
            options=resources.ray_options,
            on_progress=show,
            compress=config.collect.gzip_images,
        )


COMMAND = Command(
    "collect",
    main,
    positional="[DIR]",
    argument_option="data.dataset_dir",
    examples=(
        "recipe=cpu_transfer",
        "data/insert task=sim_air_insert collect.num_episodes=100",
    ),
)


if __name__ == "__main__":
    sys.exit(run_command(COMMAND, sys.argv[1:]))
