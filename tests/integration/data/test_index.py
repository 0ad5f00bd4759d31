"""The index of a data set: its cache, damaged files, and contradictions with the configuration."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest

from imf_ray.data.episodes import EpisodeFields, episode_path
from imf_ray.data.hdf5.check import check_episode
from imf_ray.data.hdf5.content_hash import HASH_ATTRIBUTE
from imf_ray.data.hdf5.writing import write_episode
from imf_ray.data.index import build_index, require_extendable
from imf_ray.data.statistics import compute_statistics
from imf_ray.demos.recorder import DemoRecorder
from imf_ray.errors import UserError
from tests.helpers.configs import DEMONSTRATIONS, tiny_config
from tests.helpers.episode_files import LENGTH, write_act, write_act_plus_plus, write_roboimi


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


def _dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_dangling_link, "cannot be read"),
        (_truncate, "cannot be read"),
        (_not_hdf5, "cannot be read"),
        (_no_qpos, "lacks"),
        (_short_camera, "camera top has 399 images"),
        (_no_camera, "needs top"),
        (_float_images, "type float32"),
        (_flip_a_byte, "cannot be read"),
        (_other_task, "task=other"),
        (_group_for_action, "/action is a group"),
        (_scalar_action, "/action is float64"),
        (_group_for_camera, "top is a group"),
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
        (["data.camera_names=[top,wrist]"], r"data.camera_names=\[top\]"),
        (["task.image_size=96"], "task.image_size=48"),
        (["agent.action_dim=14"], "agent.action_dim=16"),
        (["task.shadows=true"], "task.shadows=false"),
        (["agent.privileged_pose_objects=[ring]"], r"agent.privileged_pose_objects=\[\]"),
        (["agent.aux_pose_objects=[ring,cube]"], r"agent.aux_pose_objects=\[cube\]"),
        (["task.control_hz=25"], "task.control_hz=50"),
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
        assert f"parts of the episodes in {tmp_path} are not used: /base_action" in caplog.text


def test_the_action_space_must_be_recorded(tmp_path: Path) -> None:
    write_roboimi(tmp_path / "episode_0.hdf5")
    options = [*FOREIGN_OPTIONS, "data.resize_images=true"]
    with pytest.raises(UserError, match=r"Set task.action_space=ee"):
        build_index(tiny_config(tmp_path, *options))
    index = build_index(tiny_config(tmp_path, *options, "task.action_space=ee"))
    assert len(index.episodes) == 1
    # The cache is per format, so the file is checked again.
    index = build_index(tiny_config(tmp_path, *options, "data.format=act"))
    assert index.episodes[0].format == "act"


def test_other_image_sizes_need_resize_images(tmp_path: Path) -> None:
    write_act(tmp_path / "episode_0.hdf5", dim=16)
    options = ["data.camera_names=[top]", "task.image_size=16"]
    with pytest.raises(UserError, match=r"24x32.*Set data.resize_images=true"):
        build_index(tiny_config(tmp_path, *options))
    index = build_index(tiny_config(tmp_path, *options, "data.resize_images=true"))
    assert len(index.episodes) == 1


def test_one_index_serves_every_channel_order(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        write_act_plus_plus(tmp_path / f"episode_{number}.hdf5", dim=16)
    options = [*FOREIGN_OPTIONS, "data.resize_images=true"]
    indexes = []
    for order in ("auto", "rgb", "bgr"):
        caplog.clear()
        index = build_index(tiny_config(tmp_path, *options, f"data.channel_order={order}"))
        indexes.append(index)
        warnings = [r for r in caplog.records if "data.channel_order=rgb" in r.getMessage()]
        assert len(warnings) == (order == "auto")
    assert indexes[0] == indexes[1] == indexes[2]


def test_own_recordings_in_another_channel_order_are_refused(own_demonstrations: Path) -> None:
    with pytest.raises(UserError, match=r"channel_order=bgr.*episode_0.*channel_order=auto"):
        build_index(tiny_config(own_demonstrations, "data.channel_order=bgr"))


def test_collecting_extends_only_its_own_data_sets(demonstrations: Path, tmp_path: Path) -> None:
    require_extendable(tiny_config(demonstrations, "agent.state_dim=14"))
    with pytest.raises(UserError, match=r"Set task\.image_size=48"):
        require_extendable(tiny_config(demonstrations, "task.image_size=96"))
    write_act(tmp_path / "episode_0.hdf5", dim=16)
    with pytest.raises(UserError, match=r"episode_0.hdf5.*another data\.dataset_dir"):
        require_extendable(tiny_config(tmp_path, *FOREIGN_OPTIONS))
