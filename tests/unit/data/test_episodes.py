"""Writing, checking and reading episodes of our format, and their statistics."""

import dataclasses
from pathlib import Path

import h5py
import numpy as np
import pytest

from imf_ray.data.episodes import EpisodeFields, EpisodeRef
from imf_ray.data.hdf5.check import check_episode
from imf_ray.data.readers import read_slice
from imf_ray.data.statistics import compute_statistics
from testing_support.episode_fuzzer import LENGTH, OBJECT, SIZE, write_compressed, write_ours


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("episodes") / "episode_0.hdf5"
    write_ours(path)
    return path


def test_a_check_describes_the_file(path: Path) -> None:
    info = check_episode(path)
    assert info.length == LENGTH and info.problems == {} and not info.damaged
    assert info.cameras == {camera: (SIZE, SIZE) for camera in ("r_vis", "top")}
    assert info.objects == (OBJECT,) and info.action_spaces == ("joint", "ee")
    assert len(info.stats["action"].mean) == len(info.stats["observations/qpos"].mean) == 16
    assert set(info.stats) == {
        *("observations/qpos", "observations/qvel", "observations/poses/cube"),
        *("action", "action_ee"),
    }


@pytest.mark.parametrize(("action_space", "dataset"), [("joint", "action"), ("ee", "action_ee")])
def test_a_slice_holds_the_requested_fields(path: Path, action_space: str, dataset: str) -> None:
    fields = EpisodeFields(("top",), (OBJECT,), action_space)
    part = read_slice(check_episode(path).ref, fields, (3, 7), (5, 20))
    assert (part.length, part.frame_start, part.action_start) == (LENGTH, 3, 5)
    with h5py.File(path) as file:
        assert list(part.images) == ["top"] and list(part.object_poses) == [OBJECT]
        np.testing.assert_array_equal(part.images["top"], file["observations/images/top"][3:7])
        np.testing.assert_array_equal(part.qpos, file["observations/qpos"][3:7])
        np.testing.assert_array_equal(
            part.object_poses[OBJECT], file[f"observations/poses/{OBJECT}"][3:7]
        )
        np.testing.assert_array_equal(part.action, file[dataset][5:20])
    assert part.object_poses[OBJECT].dtype == np.float32
    assert read_slice(check_episode(path).ref, EpisodeFields(), (3, 7), (5, 6)).object_poses == {}


def test_statistics_of_state_action_and_poses(path: Path) -> None:
    info = check_episode(path)
    statistics = compute_statistics([info, info], EpisodeFields(objects=(OBJECT,)))
    assert set(statistics) == {"qpos", "action", "object_poses"}
    with h5py.File(path) as file:
        for stats, dataset in (
            (statistics["qpos"], "observations/qpos"),
            (statistics["action"], "action"),
            (statistics["object_poses"][OBJECT], f"observations/poses/{OBJECT}"),
        ):
            values = file[dataset][:].astype(np.float64)
            np.testing.assert_array_equal(stats["min"], values.min(0))
            np.testing.assert_array_equal(stats["max"], values.max(0))
            np.testing.assert_allclose(stats["mean"], values.mean(0), rtol=0, atol=1e-12)
            np.testing.assert_allclose(stats["std"], values.std(0), rtol=1e-12)
    assert compute_statistics([info], EpisodeFields())["object_poses"] == {}


def test_compression_keeps_the_episode(path: Path, tmp_path: Path) -> None:
    write_compressed(tmp_path / "episode_0.hdf5")
    info = check_episode(path)
    compressed = check_episode(tmp_path / "episode_0.hdf5")
    moved = dataclasses.replace(compressed, path=str(path), fingerprint=info.fingerprint)
    assert moved == info


def test_references_of_earlier_versions_are_read(path: Path) -> None:
    ref = check_episode(path).ref
    values = dataclasses.asdict(ref)
    assert EpisodeRef.from_dict(values) == ref
    values["stamp"], values["digest"] = values.pop("fingerprint"), values.pop("content_hash")
    assert EpisodeRef.from_dict(values) == ref
