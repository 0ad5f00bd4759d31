"""Collection of demonstrations: resume, independence of the number of workers, running tasks."""

from __future__ import annotations

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest

from imf_ray.data.episode_files import list_episodes
from imf_ray.data.episodes import episode_path
from imf_ray.data.source_files import cache_folder
from imf_ray.demos import collect
from imf_ray.demos.collect import CollectionState, collect_episodes
from imf_ray.errors import UserError
from tests.helpers.configs import tiny_config

pytestmark = pytest.mark.usefixtures("ray_cluster")


def _collect(
    folder: Path, num_episodes: int, num_workers: int, first_seed: int = 40, *overrides: str
) -> CollectionState:
    config = tiny_config(folder, *overrides)
    return collect_episodes(
        folder,
        num_episodes,
        first_seed,
        config.task,
        config.data.camera_names,
        num_workers,
        options={"num_cpus": 0.5},
        on_progress=lambda state: None,
    )


def test_a_second_run_adds_the_missing_episodes(tmp_path: Path) -> None:
    _collect(tmp_path, 1, num_workers=1)
    first = episode_path(tmp_path, 0).stat()
    state = _collect(tmp_path, 3, num_workers=2)
    assert state.seeds == [40, 41, 42] and state.failed == []
    assert episode_path(tmp_path, 0).stat().st_mtime_ns == first.st_mtime_ns
    assert [path.name for path in list_episodes(tmp_path)] == [
        f"episode_{n}.hdf5" for n in range(3)
    ]
    second_folder = tmp_path / "again"
    _collect(second_folder, 3, num_workers=1)
    for number in range(3):
        with (
            h5py.File(episode_path(tmp_path, number)) as one,
            h5py.File(episode_path(second_folder, number)) as two,
        ):
            assert one.attrs["seed"] == two.attrs["seed"] == 40 + number
            np.testing.assert_array_equal(one["action"][:], two["action"][:])
            np.testing.assert_array_equal(one["action_ee"][:], two["action_ee"][:])
            for camera in ("r_vis", "top", "front"):
                name = f"observations/images/{camera}"
                np.testing.assert_array_equal(one[name][:], two[name][:])

    with pytest.raises(UserError, match="does not continue a collection"):
        _collect(tmp_path, 4, num_workers=1, first_seed=1000)


def test_a_folder_with_foreign_files_is_refused(tmp_path: Path) -> None:
    episode_path(tmp_path, 0).write_text("not an episode")
    with pytest.raises(UserError, match=r"episode_0.hdf5 is not an episode of this collection"):
        _collect(tmp_path, 2, num_workers=1)


def test_an_unreachable_folder_fails_no_seed(tmp_path: Path) -> None:
    """As on a node that does not mount the data set, the folder of new episodes is missing."""
    config = tiny_config(tmp_path)

    def delete_pending(state: CollectionState) -> None:
        for pending in cache_folder(tmp_path).glob("pending*"):
            shutil.rmtree(pending)

    with pytest.raises(UserError, match=r"a data\.dataset_dir that every node reaches"):
        collect_episodes(
            *(tmp_path, 1, 40, config.task, config.data.camera_names, 1),
            options={"num_cpus": 0.5},
            on_progress=delete_pending,
        )
    assert not list(cache_folder(tmp_path).glob("failed_seeds*"))


def _end_collections_with_running_tasks(
    folder: Path, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """End collections while tasks are running, about to finish, and finished.

    The episodes are too short to succeed, so every collection ends after a few failures.
    """
    monkeypatch.setattr(collect, "MAX_FAILURES", 2)
    for number in range(rounds):
        data_set = folder / str(number)
        with pytest.raises(UserError, match="failed on 2 seeds in a row"):
            _collect(data_set, 1, 4, 0, "task.max_episode_steps=1", "data.camera_names=[top]")
        assert not list(cache_folder(data_set).glob("pending*"))


def test_a_collection_ends_while_tasks_are_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _end_collections_with_running_tasks(tmp_path, 20, monkeypatch)


@pytest.mark.slow
def test_collections_end_many_times_while_tasks_are_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forced `ray.cancel` of finished tasks killed a worker after about 400 rounds (Ray 2.60)."""
    _end_collections_with_running_tasks(tmp_path, 600, monkeypatch)
