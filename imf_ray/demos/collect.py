"""Parallel recording of demonstrations in Ray tasks; the data set does not depend on their number.

The data set consists of the first N successful seeds from the first seed on, numbered in the order
of their seeds. A seed is recorded under a temporary name. It gets its number once all seeds before
it are decided. Failed seeds are remembered, so that a later run only records what is missing.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import tempfile
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
"""Failed seeds in a row that end a collection."""
PENDING_PREFIX = "pending"


@dataclass
class CollectionState:
    """Progress of a data set: its successful seeds by episode number, and its failed seeds."""

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
    """Extend a data set to `episodes` successful demonstrations.

    Args:
        workers: tasks in parallel.
        options: Ray options of each task.
        on_progress: called with the state after every decided seed.
        compress: see `write_episode`.

    Returns:
        The final state.

    Raises:
        UserError: the folder holds episodes that are not of this collection, or the expert fails
            on `MAX_FAILURES` seeds in a row.
    """
    state = _read_state(folder, first_seed)
    pending = _make_pending_folder(folder)
    next_seed = max([first_seed - 1, *state.seeds, *state.failed]) + 1
    next_undecided_seed, last_success = next_seed, next_seed
    running: dict[ray.ObjectRef, int] = {}
    outcomes: dict[int, bool] = {}
    record = _record.options(**options)
    pickled_task = pickle.dumps(task)  # the hashable key of a process's recorder
    on_progress(state)
    try:
        while len(state.seeds) < episodes:
            while len(running) < workers:
                target = str(_pending_path(pending, next_seed))
                reference = record.remote(
                    pickled_task, tuple(camera_names), next_seed, target, compress
                )
                running[reference] = next_seed
                next_seed += 1
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                outcomes[running.pop(reference)] = ray.get(reference)
            while next_undecided_seed in outcomes and len(state.seeds) < episodes:
                if outcomes.pop(next_undecided_seed):
                    os.replace(
                        _pending_path(pending, next_undecided_seed),
                        episode_path(folder, len(state.seeds)),
                    )
                    state.seeds.append(next_undecided_seed)
                    last_success = next_undecided_seed
                else:
                    state.failed.append(next_undecided_seed)
                    _write_failed(folder, state.failed)
                next_undecided_seed += 1
                on_progress(state)
            if next_undecided_seed - last_success > MAX_FAILURES:
                raise UserError(
                    f"The expert of {task.env_id} failed on {MAX_FAILURES} seeds in a row "
                    f"({next_undecided_seed - MAX_FAILURES} to {next_undecided_seed - 1})."
                )
    finally:
        # Running tasks return when their folder is gone. A forced `ray.cancel` is no alternative:
        # if a task has just finished, it can kill the worker (Ray 2.60).
        shutil.rmtree(pending, ignore_errors=True)
    return state


@functools.lru_cache(maxsize=1)
def _recorder(pickled_task: bytes, camera_names: tuple[str, ...]) -> DemoRecorder:
    """The recorder of this process: one env and renderer for all of its episodes."""
    return DemoRecorder(pickle.loads(pickled_task), camera_names)


@ray.remote(max_retries=3)
def _record(
    pickled_task: bytes, cameras: tuple[str, ...], seed: int, target: str, compress: bool
) -> bool:
    """Record one seed into `target` if the expert succeeds; return True on success.

    The collection has ended when the folder of `target` is gone. The task then returns False at
    its next step.
    """
    folder = Path(target).parent

    def check_folder() -> None:
        if not folder.is_dir():
            raise FileNotFoundError(folder)

    try:
        check_folder()
        episode = _recorder(pickled_task, cameras).record(seed, on_step=check_folder)
        if episode.attributes.success:
            write_episode(Path(target), episode, compress)
        return episode.attributes.success
    except Exception:
        if folder.is_dir():
            raise
        return False  # nobody waits for this seed


def _make_pending_folder(folder: Path) -> Path:
    """A new folder for episodes without a number; those of earlier collections are deleted."""
    cache = cache_folder(folder)
    cache.mkdir(parents=True, exist_ok=True)
    for stale_folder in cache.glob(f"{PENDING_PREFIX}*"):  # its seeds are recorded again
        shutil.rmtree(stale_folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PENDING_PREFIX}-", dir=cache))


def _pending_path(pending: Path, seed: int) -> Path:
    return pending / f"seed_{seed}{SUFFIX}"


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
