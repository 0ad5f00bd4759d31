"""Data sets of robomimic and of Diffusion Policy are read in place."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr

from imf_ray.data.dataset_folder import find_dataset
from imf_ray.data.episodes import SPLIT, EpisodeFields, EpisodeMetadata
from imf_ray.data.index import EpisodeIndex
from imf_ray.data.readers import DIFFUSION_POLICY, ROBOMIMIC, check_episode, read_slice
from imf_ray.errors import UserError
from tests.helpers.episode_files import LENGTH, smooth_images
from tests.helpers.foreign_data import (
    ROBOT_STATE,
    STATE_DIM,
    vectors,
    write_diffusion_policy,
    write_robomimic,
)


def _check(folder: Path, expected_format: str, **features: list[str]) -> list[EpisodeMetadata]:
    format, paths = find_dataset(folder)
    assert format == expected_format
    return [check_episode(path, format, features) for path in paths]


def test_diffusion_policy(tmp_path: Path) -> None:
    write_diffusion_policy(tmp_path)
    option = {"state": ["keypoint", "state[0:2]"]}
    infos = _check(tmp_path, DIFFUSION_POLICY, **option)
    assert [info.length for info in infos] == [LENGTH] * 3
    assert all(info.problems == {} and info.unused_datasets == () for info in infos)
    part = read_slice(infos[1].ref, EpisodeFields(("img",), features=option), (2, 9), (0, LENGTH))
    assert (part.images["img"] == smooth_images(1)[2:9]).all()
    assert (part.action == vectors(10, 2)).all()
    expected = np.concatenate([vectors(21, 6), vectors(1, STATE_DIM)[:, :2]], axis=1)
    assert (part.qpos == expected[2:9]).all()


def test_a_changed_chunk_is_noticed(tmp_path: Path) -> None:
    write_diffusion_policy(tmp_path)
    infos = _check(tmp_path, DIFFUSION_POLICY)
    array = zarr.open_group(str(tmp_path), mode="r+")["data/state"]
    assert isinstance(array, zarr.Array)
    array[0] = np.zeros(STATE_DIM, np.float32)
    with pytest.raises(UserError, match=r"episode_0 .* was changed"):
        read_slice(infos[0].ref, EpisodeFields(), (0, 1), (0, 1))
    read_slice(infos[2].ref, EpisodeFields(), (0, 1), (0, 1))


def test_zarr_arrays_of_other_lengths_are_not_used(tmp_path: Path) -> None:
    write_diffusion_policy(tmp_path)
    root = zarr.open_group(str(tmp_path), mode="r+")
    root.create_array("data/short", shape=(5, 2), dtype=np.float32)
    info = _check(tmp_path, DIFFUSION_POLICY)[0]
    assert "short has 5 rows, but the episodes 36 steps" in info.problems["short"]
    assert info.required_problem is None


def test_a_missing_chunk_is_refused(tmp_path: Path) -> None:
    write_diffusion_policy(tmp_path)
    (tmp_path / "data/action/0.0").unlink()
    (tmp_path / "data/keypoint/4.0.0").unlink()
    infos = _check(tmp_path, DIFFUSION_POLICY)
    assert "action lacks the file data/action/0.0" in str(infos[0].required_problem)
    mapped = _check(tmp_path, DIFFUSION_POLICY, action=["action[0:1]"])
    assert "action lacks the file data/action/0.0" in str(mapped[0].required_problem)
    assert infos[1].required_problem is None and infos[2].required_problem is None
    assert "keypoint lacks the file data/keypoint/4.0.0" in infos[2].problems["keypoint"]


def test_images_with_fractions_are_refused(tmp_path: Path) -> None:
    write_diffusion_policy(tmp_path)
    images = zarr.open_group(str(tmp_path), mode="r+")["data/img"]
    assert isinstance(images, zarr.Array)
    images[3] = np.full(images.shape[1:], 0.5, np.float32)
    infos = _check(tmp_path, DIFFUSION_POLICY)
    assert "not whole numbers from 0 to 255" in str(infos[0].required_problem)
    assert infos[1].required_problem is None


def test_robomimic(tmp_path: Path) -> None:
    path = tmp_path / "image.hdf5"
    write_robomimic(path)
    infos = _check(path, ROBOMIMIC)
    assert [info.attributes[SPLIT] for info in infos] == ["train", "train", "validation"]
    assert infos[0].attributes["control_hz"] == 20 and infos[0].attributes["task"] == "Lift"
    assert infos[0].unused_datasets == ("states",)
    part = read_slice(infos[2].ref, EpisodeFields(("robot0_eye_in_hand",)), (1, 5), (0, LENGTH))
    assert (part.images["robot0_eye_in_hand"] == smooth_images(102)[1:5]).all()
    parts = [vectors(10 * seed + 2, dim) for seed, dim in enumerate(ROBOT_STATE.values())]
    assert (part.qpos == np.concatenate(parts, axis=1)[1:5]).all()
    train, val = EpisodeIndex(tuple(infos), {}).split(val_split=0.5, seed=0)
    assert [len(train.episodes), len(val.episodes)] == [2, 1]
    assert val.episodes[0].path.endswith("image.hdf5/demo_2")


def test_a_file_of_robomimic_without_observations(tmp_path: Path) -> None:
    path = tmp_path / "demo.hdf5"
    write_robomimic(path)
    with h5py.File(path, "r+") as file:
        del file["data/demo_0/obs"], file["data/demo_1/actions"]
    format, paths = find_dataset(path)
    problem = str(check_episode(paths[0], format).required_problem)
    assert "it has no state with the usual name robot0_eef_pos" in problem
    assert "data.features={state: [NAME]} with one or more of actions, states" in problem
    with pytest.raises(UserError, match=r"demo_1: /data/demo_1 has no actions"):
        check_episode(paths[1], format)
    assert check_episode(paths[0], format, {"state": ["states"]}).required_problem is None
