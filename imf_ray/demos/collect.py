"""Recording in parallel Ray tasks, into a data set that is the same however many there were.

The data set is the first N successful seeds from the first one on, numbered in the order of their
seeds. A seed is recorded under a temporary name and takes its number once all seeds before it are
decided; seeds that failed are remembered, so that a second run adds what is missing and repeats
nothing.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import ray

from imf_ray.data.episodes import SUFFIX, episode_path, write_episode
from imf_ray.data.hdf5 import cache_folder
from imf_ray.data.index import list_episodes
from imf_ray.demos.recorder import DemoRecorder
from imf_ray.errors import UserError
from imf_ray.files import write_atomically
from imf_ray.schema import TaskConfig

MAX_FAILURES = 100
"""Failed attempts without a success between them that end a collection."""


@dataclass
class CollectionState:
    """How far a data set is: its successful seeds by episode number, and its failed seeds."""

    seeds: list[int]
    failed: list[int]


def collect_episodes(
    folder: Path,
    episodes: int,
    first_seed: int,
    task: TaskConfig,
    camera_names: Sequence[str],
    workers: int,
    options: Mapping[str, Any],
    on_progress: Callable[[CollectionState], None],
    compress: bool = False,
) -> CollectionState:
    """Bring a data set to `episodes` successful demonstrations.

    Args:
        options: of Ray, for each of `workers` parallel attempts.
        on_progress: called with the state after every attempt that was decided.
        compress: see `write_episode`.

    Returns:
        The final state.

    Raises:
        UserError: the folder holds episodes that are not of this collection, or the expert fails
            `MAX_FAILURES` times in a row.
    """
    state = _read_state(folder, first_seed)
    pending = cache_folder(folder) / "pending"
    pending.mkdir(parents=True, exist_ok=True)
    for debris in pending.iterdir():  # of a run that was killed: its seeds are recorded again
        debris.unlink()

    next_seed = max([first_seed - 1, *state.seeds, *state.failed]) + 1
    next_decision, last_success = next_seed, next_seed
    running: dict[ray.ObjectRef, int] = {}
    outcomes: dict[int, bool] = {}
    record = _record.options(**options)
    described = pickle.dumps(task)  # by which a process knows its recorder again
    on_progress(state)
    try:
        while len(state.seeds) < episodes:
            while len(running) < workers:
                target = str(pending / f"seed_{next_seed}{SUFFIX}")
                reference = record.remote(
                    described, tuple(camera_names), next_seed, target, compress
                )
                running[reference] = next_seed
                next_seed += 1
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                outcomes[running.pop(reference)] = ray.get(reference)
            while next_decision in outcomes and len(state.seeds) < episodes:
                if outcomes.pop(next_decision):
                    os.replace(
                        pending / f"seed_{next_decision}{SUFFIX}",
                        episode_path(folder, len(state.seeds)),
                    )
                    state.seeds.append(next_decision)
                    last_success = next_decision
                else:
                    state.failed.append(next_decision)
                    _write_failed(folder, state.failed)
                next_decision += 1
                on_progress(state)
            if next_decision - last_success > MAX_FAILURES:
                raise UserError(
                    f"The expert of {task.env_id} failed on {MAX_FAILURES} seeds in a row "
                    f"({next_decision - MAX_FAILURES} to {next_decision - 1})."
                )
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        for surplus in pending.iterdir():
            surplus.unlink(missing_ok=True)
    return state


@functools.lru_cache(maxsize=1)
def _recorder(task: bytes, camera_names: tuple[str, ...]) -> DemoRecorder:
    """One environment and renderer a process, whatever the number of its episodes."""
    return DemoRecorder(pickle.loads(task), camera_names)


@ray.remote(max_retries=3)
def _record(task: bytes, cameras: tuple[str, ...], seed: int, target: str, compress: bool) -> bool:
    """Record one seed into `target` if the expert succeeds; return whether it did."""
    episode = _recorder(task, cameras).record(seed)
    if episode.attributes.success:
        write_episode(Path(target), episode, compress)
    return episode.attributes.success


def _read_state(folder: Path, first_seed: int) -> CollectionState:
    folder.mkdir(parents=True, exist_ok=True)
    seeds = []
    for number, path in enumerate(list_episodes(folder)):
        try:
            with h5py.File(path, "r") as file:
                seed = int(file.attrs["seed"])
        except (OSError, KeyError) as error:
            raise UserError(
                f"{path} is not an episode of this collection ({error}). Collect into another "
                "data.dataset_dir, or remove the file."
            ) from error
        if path != episode_path(folder, number) or seed < first_seed:
            raise UserError(
                f"{path} (seed {seed}) does not continue a collection from collect.seed="
                f"{first_seed}: collect into another data.dataset_dir."
            )
        seeds.append(seed)
    try:
        failed = json.loads(_failed_path(folder).read_text())
    except FileNotFoundError:
        failed = []
    return CollectionState(seeds, failed)


def _write_failed(folder: Path, failed: list[int]) -> None:
    write_atomically(_failed_path(folder), json.dumps(failed))


def _failed_path(folder: Path) -> Path:
    return cache_folder(folder) / "failed_seeds.json"
