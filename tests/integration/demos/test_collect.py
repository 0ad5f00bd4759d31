"""Collecting demonstrations: resumable, the same whatever the number of workers."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from imf_ray.data.episodes import episode_path
from imf_ray.data.index import list_episodes
from imf_ray.demos.collect import CollectionState, collect_episodes
from imf_ray.errors import UserError
from tests.helpers.configs import tiny_config

pytestmark = pytest.mark.usefixtures("ray_cluster")


def _collect(folder: Path, episodes: int, workers: int, first_seed: int = 40) -> CollectionState:
    config = tiny_config(folder)
    return collect_episodes(
        folder,
        episodes,
        first_seed,
        config.task,
        config.data.camera_names,
        workers,
        options={"num_cpus": 0.5},
        on_progress=lambda state: None,
    )


def test_a_second_run_adds_what_is_missing(tmp_path: Path) -> None:
    state = _collect(tmp_path, 1, workers=1)
    first = episode_path(tmp_path, 0).stat()
    state = _collect(tmp_path, 3, workers=2)
    assert state.seeds == [40, 41, 42] and state.failed == []
    assert episode_path(tmp_path, 0).stat().st_mtime_ns == first.st_mtime_ns
    assert [path.name for path in list_episodes(tmp_path)] == [
        f"episode_{n}.hdf5" for n in range(3)
    ]
    again = tmp_path / "again"
    _collect(again, 3, workers=1)
    for number in range(3):
        with (
            h5py.File(episode_path(tmp_path, number)) as one,
            h5py.File(episode_path(again, number)) as two,
        ):
            assert one.attrs["seed"] == two.attrs["seed"] == 40 + number
            np.testing.assert_array_equal(one["action"][:], two["action"][:])
            np.testing.assert_array_equal(one["action_ee"][:], two["action_ee"][:])
            for camera in ("r_vis", "top", "front"):
                name = f"observations/images/{camera}"
                np.testing.assert_array_equal(one[name][:], two[name][:])

    with pytest.raises(UserError, match="does not continue a collection"):
        _collect(tmp_path, 4, workers=1, first_seed=1000)


def test_foreign_files_are_not_added_to(tmp_path: Path) -> None:
    episode_path(tmp_path, 0).write_text("not an episode")
    with pytest.raises(UserError, match=r"episode_0.hdf5 is not an episode of this collection"):
        _collect(tmp_path, 2, workers=1)
