"""What a collection reads from the folder that it continues."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import h5py
import pytest

from imf_ray.data.episodes import episode_path
from imf_ray.data.source_files import cache_folder
from imf_ray.demos.collect import MAX_FAILURES, CollectionState, _read_state
from imf_ray.errors import UserError


def _write(folder: Path, seeds: Sequence[int], failed: str | None = None) -> None:
    for number, seed in enumerate(seeds):
        with h5py.File(episode_path(folder, number), "w") as file:
            file.attrs["seed"] = seed
    if failed is not None:
        path = cache_folder(folder) / "failed_seeds.json"
        path.parent.mkdir()
        path.write_text(failed)


@pytest.mark.parametrize(
    ("seeds", "failed"),
    [
        ([], None),
        ([5, 6, 8], [7]),
        ([6, 8], None),  # a copy without the hidden folder
        ([5, 5 + MAX_FAILURES], None),
        ([5, 500], list(range(6, 500))),  # repeated although the expert failed often
    ],
)
def test_a_collection_is_continued(
    tmp_path: Path, seeds: list[int], failed: list[int] | None
) -> None:
    _write(tmp_path, seeds, None if failed is None else json.dumps(failed))
    assert _read_state(tmp_path, first_seed=5) == CollectionState(seeds, failed or [])


@pytest.mark.parametrize(
    "seeds",
    [[0, 100, 2], [0, 1, 1], [0, 1000, 1001], [100, 0, 1], [-1, 0], [1000, 1001]],
    ids=str,
)
def test_episodes_of_two_collections_are_not_continued(tmp_path: Path, seeds: list[int]) -> None:
    """Two collections into one folder have overwritten each other's episodes in the past."""
    _write(tmp_path, seeds)
    with pytest.raises(UserError, match=r"episode_\d\.hdf5 .*data\.dataset_dir"):
        _read_state(tmp_path, first_seed=0)


@pytest.mark.parametrize("name", ["episode_0.h5", "Episode_0.hdf5", "episode_00.hdf5"])
def test_a_demonstration_under_another_name_is_renamed_not_removed(
    tmp_path: Path, name: str
) -> None:
    _write(tmp_path, [0, 1])
    (tmp_path / "episode_0.hdf5").rename(tmp_path / name)
    with pytest.raises(UserError, match=r"episode_0\.hdf5\. Rename") as error:
        _read_state(tmp_path, first_seed=0)
    assert name in str(error.value) and "remove" not in str(error.value)


def test_demonstrations_numbered_from_one_are_renamed_in_turn(tmp_path: Path) -> None:
    _write(tmp_path, [0, 1, 2])
    for number in (2, 1, 0):
        episode_path(tmp_path, number).rename(episode_path(tmp_path, number + 1))
    for number in range(3):
        with pytest.raises(UserError, match=rf"episode_{number}\.hdf5\. Rename"):
            _read_state(tmp_path, first_seed=0)
        episode_path(tmp_path, number + 1).rename(episode_path(tmp_path, number))
    assert _read_state(tmp_path, first_seed=0).seeds == [0, 1, 2]


@pytest.mark.parametrize("content", ["", "[1", "{}x", '["a"]', "7", "\0"])
def test_a_damaged_list_of_failed_seeds_is_one_error(tmp_path: Path, content: str) -> None:
    _write(tmp_path, [0], content)
    with pytest.raises(UserError, match=r"failed_seeds\.json is damaged .* Delete it"):
        _read_state(tmp_path, first_seed=0)
