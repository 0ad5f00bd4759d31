"""The index of a data set: its cache, damaged files, and contradictions with the configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from imf_ray.data.content_hash import HASH_ATTRIBUTE
from imf_ray.data.episode_check import check_episode
from imf_ray.data.episode_files import require_episodes
from imf_ray.data.episodes import EpisodeFields, episode_path, write_episode
from imf_ray.data.index import build_index
from imf_ray.data.statistics import compute_statistics
from imf_ray.demos.recorder import DemoRecorder
from imf_ray.errors import UserError
from tests.helpers.configs import DEMONSTRATIONS, tiny_config
from tests.helpers.episode_files import LENGTH, write_act, write_roboimi


def test_an_episode_file_has_the_documented_layout(demonstrations: Path) -> None:
    with h5py.File(episode_path(demonstrations, 0)) as file:
        length = len(file["action"])
        assert file["observations/images/top"].shape == (length, 48, 48, 3)
        assert file["observations/images/top"].dtype == np.uint8
        assert file["observations/images/top"].chunks == (1, 48, 48, 3)
        for name in ("observations/qpos", "observations/qvel", "action", "action_ee"):
            assert file[name].shape == (length, 16) and file[name].dtype == np.float32
        attributes = dict(file.attrs)
    assert attributes["sim"] and attributes["success"]
    assert attributes["action_space"] == "joint" and attributes["control_hz"] == 50
    assert attributes["task"] == "imf_ray/SimTransfer-v0" and attributes["seed"] == 0


def test_compressed_images_need_less_than_half_the_space(
    demonstrations: Path, tmp_path: Path
) -> None:
    raw, compressed = episode_path(demonstrations, 0), episode_path(tmp_path, 0)
    config = tiny_config(demonstrations)
    episode = DemoRecorder(config.task, config.data.camera_names).record(seed=0)
    write_episode(compressed, episode, compress=True)
    assert check_episode(compressed).content_hash == check_episode(raw).content_hash
    assert compressed.stat().st_size < raw.stat().st_size / 2


def test_the_index_is_cached_and_notices_changes(own_demonstrations: Path) -> None:
    config = tiny_config(own_demonstrations)
    first = build_index(config)
    assert len(first.episodes) == DEMONSTRATIONS
    assert build_index(config) == first
    with h5py.File(episode_path(own_demonstrations, 1), "r+") as file:
        file["action"][3, 2] = np.nan
    with pytest.raises(UserError, match=r"episode_1.hdf5.*NaN"):
        build_index(config)


@contextmanager
def open_without_hash(path: Path) -> Iterator[h5py.File]:
    """Open a file for changes, and delete its content hash."""
    with h5py.File(path, "r+") as file:
        del file.attrs[HASH_ATTRIBUTE]
        yield file


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def _no_qpos(path: Path) -> None:
    with open_without_hash(path) as file:
        del file["observations/qpos"]


def _short_camera(path: Path) -> None:
    with open_without_hash(path) as file:
        frames = file["observations/images/top"][:-1]
        del file["observations/images/top"]
        file["observations/images/top"] = frames


def _no_camera(path: Path) -> None:
    with open_without_hash(path) as file:
        del file["observations/images/top"]


def _float_images(path: Path) -> None:
    with open_without_hash(path) as file:
        frames = file["observations/images/top"][:].astype(np.float32)
        del file["observations/images/top"]
        file["observations/images/top"] = frames


def _flip_a_byte(path: Path) -> None:
    with h5py.File(path) as file:
        offset = file["observations/images/front"].id.get_chunk_info(7).byte_offset
    content = bytearray(path.read_bytes())
    content[offset + 11] ^= 0xFF
    path.write_bytes(bytes(content))


def _other_task(path: Path) -> None:
    with open_without_hash(path) as file:
        file.attrs["task"] = "other"


def _group_for_action(path: Path) -> None:
    with open_without_hash(path) as file:
        del file["action"]
        file.create_group("action")


def _scalar_action(path: Path) -> None:
    with open_without_hash(path) as file:
        del file["action"]
        file["action"] = 1.0


def _group_for_camera(path: Path) -> None:
    with open_without_hash(path) as file:
        del file["observations/images/top"]
        file.create_group("observations/images/top")


def _not_hdf5(path: Path) -> None:
    path.write_text("hello")


def _narrow_poses(path: Path) -> None:
    with open_without_hash(path) as file:
        poses = file["observations/poses/cube"][:]
        del file["observations/poses/cube"]
        file["observations/poses/cube"] = poses[:, :6]


def _dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_narrow_poses, "poses/cube is 6 wide, not 7"),
        (_dangling_link, "cannot be read"),
        (_truncate, "cannot be read"),
        (_not_hdf5, "cannot be read"),
        (_no_qpos, "lacks"),
        (_short_camera, "camera top has shape"),
        (_no_camera, "no camera top"),
        (_float_images, "not uint8"),
        (_flip_a_byte, "cannot be read"),
        (_other_task, "task=other"),
        (_group_for_action, "lacks the dataset"),
        (_scalar_action, "no steps"),
        (_group_for_camera, "not a dataset"),
    ],
)
def test_invalid_files_are_named_or_skipped(own_demonstrations: Path, damage, reason: str) -> None:
    damage(episode_path(own_demonstrations, 2))
    with pytest.raises(UserError, match=f"episode_2.hdf5.*{reason}"):
        build_index(tiny_config(own_demonstrations))
    index = build_index(tiny_config(own_demonstrations, "data.on_bad_episode=skip"))
    assert len(index.episodes) == DEMONSTRATIONS - 1
    assert list(index.skipped) == ["episode_2.hdf5"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.camera_names=[top,wrist]"], "no camera wrist"),
        (["task.image_size=96"], "task.image_size=96"),
        (["agent.action_dim=14"], "action_dim is 16"),
        (["task.shadows=true"], "recorded with shadows=False"),
        (["agent.privileged_pose_objects=[ring]"], r"no poses of ring.*it has cube"),
        (["agent.aux_pose_objects=[ring]"], r"no poses of ring.*it has cube"),
        (["task.control_hz=25"], r"control_hz=50, but the run has task.control_hz=25"),
        (["train.val_split=0.9"], None),
    ],
)
def test_contradictions_with_the_config_are_refused(
    demonstrations: Path, overrides: list[str], message: str | None
) -> None:
    config = tiny_config(demonstrations, *overrides)
    if message is None:
        with pytest.raises(UserError, match="leaves none"):
            build_index(config).split(config.train.val_split, 0)
    else:
        with pytest.raises(UserError, match=message):
            build_index(config)


def test_files_with_other_names_are_reported(
    demonstrations: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("episode_0.hdf5", "demo_3.hdf5", "episode_4.h5"):
        (tmp_path / name).symlink_to(demonstrations / "episode_0.hdf5")
    assert [path.name for path in require_episodes(tmp_path)] == ["episode_0.hdf5"]
    assert "2 file(s)" in caplog.text and "demo_3.hdf5, episode_4.h5" in caplog.text


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not exist.*imf_ray.collect"):
        build_index(tiny_config(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=r"has no episode_.*imf_ray.collect"):
        build_index(tiny_config(tmp_path))


def test_statistics_use_only_the_training_split(own_demonstrations: Path) -> None:
    index = build_index(tiny_config(own_demonstrations))
    train, val = index.split(0.34, seed=1)
    assert len(train.episodes) == 2 and len(val.episodes) == 1
    statistics = compute_statistics(train.episodes, EpisodeFields())
    actions = np.concatenate(
        [h5py.File(episode.path)["action"][:] for episode in train.episodes]
    ).astype(np.float64)
    np.testing.assert_allclose(statistics["action"]["mean"], actions.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(statistics["action"]["max"], actions.max(0))
    assert compute_statistics(train.episodes, EpisodeFields()) == statistics


FOREIGN_OPTIONS = ("data.camera_names=[top]", "train.val_split=0.0")


def test_unused_datasets_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_act(tmp_path / "episode_0.hdf5", dim=16)
    with h5py.File(tmp_path / "episode_0.hdf5", "a") as file:
        file["base_action"] = np.zeros((LENGTH, 2))
    for _ in range(2):  # the second index comes from the cache
        caplog.clear()
        build_index(tiny_config(tmp_path, *FOREIGN_OPTIONS, "data.resize_images=true"))
        expected = f"Training does not use /base_action of the episodes in {tmp_path}"
        assert expected in caplog.text


def test_the_action_space_must_be_recorded(tmp_path: Path) -> None:
    write_roboimi(tmp_path / "episode_0.hdf5")
    options = [*FOREIGN_OPTIONS, "data.resize_images=true"]
    with pytest.raises(UserError, match=r"format roboimi it has ee actions, not.*=joint"):
        build_index(tiny_config(tmp_path, *options))
    index = build_index(tiny_config(tmp_path, *options, "task.action_space=ee"))
    assert len(index.episodes) == 1
    # The cache is per format, so the file is checked again.
    index = build_index(tiny_config(tmp_path, *options, "data.format=act"))
    assert index.episodes[0].format == "act"


def test_other_image_sizes_need_resize_images(tmp_path: Path) -> None:
    write_act(tmp_path / "episode_0.hdf5", dim=16)
    options = ["data.camera_names=[top]", "task.image_size=16"]
    with pytest.raises(UserError, match=r"\(24, 32\).*data.resize_images=true"):
        build_index(tiny_config(tmp_path, *options))
    index = build_index(tiny_config(tmp_path, *options, "data.resize_images=true"))
    assert len(index.episodes) == 1
