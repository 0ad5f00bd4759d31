"""Records demonstrations in parallel Ray tasks. The number of tasks does not change the data set.

The data set consists of the first N seeds, from `first_seed` on, on which the expert succeeds. Its
episodes are numbered in the order of their seeds. An episode is recorded under a temporary name and
gets its number when all smaller seeds have finished. Failed seeds are saved, so that a later
collection into the same folder does not run them again.
"""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import ray

from imf_ray.data.episode_files import list_episodes
from imf_ray.data.episodes import SUFFIX, episode_path
from imf_ray.data.hdf5.writing import write_episode
from imf_ray.data.source_files import cache_folder
from imf_ray.demos.recorder import DemoRecorder
from imf_ray.errors import UserError
from imf_ray.files import parse_json, write_atomically
from imf_ray.schema import TaskConfig
from imf_ray.storage import storage_errors

MAX_FAILURES = 100
"""Number of failed seeds in a row after which a collection raises an error."""
PENDING_PREFIX = "pending"
"""Prefix of the temporary folder with the episodes that have no number yet."""


@dataclass
class CollectionState:
    """Progress of a collection."""

    seeds: list[int]
    """Successful seeds, by episode number."""
    failed: list[int]
    """Failed seeds."""


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
        episodes: number of demonstrations in the finished data set.
        workers: number of tasks that run in parallel.
        options: Ray options of each task.
        on_progress: called with the state at the beginning and after each seed, in their order.
        compress: see `write_episode`.

    Returns:
        The final state.

    Raises:
        UserError: the folder has episodes that are not of this collection, or the expert fails
            on `MAX_FAILURES` seeds in a row.
        StorageError: an episode cannot be written. The episodes so far remain.
    """
    state = _read_state(folder, first_seed)
    pending = _make_pending_folder(folder)
    next_seed = max([first_seed - 1, *state.seeds, *state.failed]) + 1
    # Seeds finish in any order. They are numbered, or counted as failed, in the order of seeds.
    next_in_order, last_success = next_seed, next_seed
    running: dict[ray.ObjectRef, int] = {}
    outcomes: dict[int, bool] = {}
    pickled_task = pickle.dumps(task)  # hashable, so that each worker can cache its recorder
    on_progress(state)
    try:
        while len(state.seeds) < episodes:
            while len(running) < workers:
                target = str(_pending_path(pending, next_seed))
                name = f"demonstration of seed {next_seed}"  # for Ray's dashboard
                reference = _record.options(**options, name=name).remote(
                    pickled_task, tuple(camera_names), next_seed, target, compress
                )
                running[reference] = next_seed
                next_seed += 1
            done, _ = ray.wait(list(running), num_returns=1)
            for reference in done:
                try:
                    succeeded = ray.get(reference)
                except ray.exceptions.RayTaskError as error:
                    if isinstance(error.cause, UserError):  # for example, the disk is full
                        raise error.cause from error
                    raise
                if succeeded is None:
                    raise UserError(
                        f"{pending} is gone, or a node does not reach it. Use a data.dataset_dir "
                        "that every node reaches and that no other collection writes to."
                    )
                outcomes[running.pop(reference)] = succeeded
            while next_in_order in outcomes and len(state.seeds) < episodes:
                if outcomes.pop(next_in_order):
                    path = episode_path(folder, len(state.seeds))
                    with storage_errors(path, "written"):
                        os.replace(_pending_path(pending, next_in_order), path)
                    state.seeds.append(next_in_order)
                    last_success = next_in_order
                else:
                    state.failed.append(next_in_order)
                    _write_failed(folder, state.failed)
                next_in_order += 1
                on_progress(state)
            if next_in_order - last_success > MAX_FAILURES:
                raise UserError(
                    f"The expert of {task.env_id} failed on {MAX_FAILURES} seeds in a row "
                    f"({next_in_order - MAX_FAILURES} to {next_in_order - 1})."
                )
    finally:
        # Deleting the folder makes the running tasks return. `ray.cancel` with force could kill the
        # worker if the task has just finished (Ray 2.60). The folder is renamed before it is
        # deleted, because a task may be creating a file in it.
        deleted = pending.with_name(f"{pending.name}-deleted")
        with suppress(FileNotFoundError):
            pending.rename(deleted)
        shutil.rmtree(deleted, ignore_errors=True)
    return state


@functools.lru_cache(maxsize=1)
def _recorder(pickled_task: bytes, camera_names: tuple[str, ...]) -> DemoRecorder:
    """Return the recorder of this process, which has one env and renderer for all episodes."""
    return DemoRecorder(pickle.loads(pickled_task), camera_names)


@ray.remote(max_retries=3)
def _record(
    pickled_task: bytes, cameras: tuple[str, ...], seed: int, target: str, compress: bool
) -> bool | None:
    """Record one seed, and write the episode to `target` if the expert succeeds.

    Return True if it succeeds, else False.

    When a collection ends, it deletes the folder of `target`. The task then returns None at its
    next step.
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
        return None


def _make_pending_folder(folder: Path) -> Path:
    """Make the temporary folder of this collection, and delete those of earlier collections."""
    cache = cache_folder(folder)
    for stale_folder in cache.glob(f"{PENDING_PREFIX}*"):  # these seeds are recorded again
        shutil.rmtree(stale_folder, ignore_errors=True)
    pending = cache / f"{PENDING_PREFIX}-{uuid.uuid4().hex}"
    with storage_errors(pending, "written"):
        pending.mkdir(parents=True)
    return pending


def _pending_path(pending: Path, seed: int) -> Path:
    return pending / f"seed_{seed}{SUFFIX}"


def _read_state(folder: Path, first_seed: int) -> CollectionState:
    """Read the state of an earlier collection from its folder, which may be empty or missing."""
    failed = _read_failed(folder)
    seeds: list[int] = []
    for number, path in enumerate(list_episodes(folder)):
        try:
            with h5py.File(path, "r") as file:
                seed = int(file.attrs["seed"])
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{path} is not an episode of this collection ({error}). Collect into another "
                "data.dataset_dir, or remove the file."
            ) from error
        previous = seeds[-1] if seeds else first_seed - 1
        # The list of failed seeds may be missing in a copy of the data set.
        has_gap = len(set(range(previous + 1, seed)).difference(failed)) > MAX_FAILURES
        if seed <= previous or has_gap:
            after = f", after seed {previous}" if seeds else ""
            raise UserError(
                f"{path} (seed {seed}{after}) does not continue a collection from "
                f"collect.seed={first_seed}. Other collections may have written to the folder. "
                "Collect into another data.dataset_dir, or remove this file and those after it."
            )
        name = episode_path(folder, number).name
        if path.name != name:
            raise UserError(
                f"{path} is demonstration {number} of the collection by its seed, {seed}, so its "
                f"name must be {name}. Rename it, and those after it in the same way, or collect "
                "into another data.dataset_dir."
            )
        seeds.append(seed)
    return CollectionState(seeds, failed)


def _read_failed(folder: Path) -> list[int]:
    path = _failed_path(folder)
    if not path.is_file():
        return []
    way_out = "Delete it. Then the seeds that failed so far are not counted."
    return parse_json(path.read_bytes(), lambda seeds: [int(seed) for seed in seeds], path, way_out)


def _write_failed(folder: Path, failed: list[int]) -> None:
    write_atomically(_failed_path(folder), json.dumps(failed))


def _failed_path(folder: Path) -> Path:
    return cache_folder(folder) / "failed_seeds.json"
