"""The index notices that a file of another program was changed."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import pytest

from imf_ray.data import index
from imf_ray.data.episode_check import check_episode
from imf_ray.data.episodes import EpisodeMetadata
from imf_ray.data.index import check_dataset
from tests.helpers.configs import tiny_config
from tests.helpers.episode_files import write_act


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an indexed file. Files are checked in this process."""

    def check_files(paths: Sequence[Path], format: str) -> Iterator[tuple[Path, EpisodeMetadata]]:
        return ((path, check_episode(path, format)) for path in paths)

    monkeypatch.setattr(index, "check_files", check_files)
    path = tmp_path / "episode_0.hdf5"
    write_act(path)
    check_dataset(tmp_path, [path], "auto")
    return path


def test_a_forced_check_accepts_an_intended_change(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["channel_order"] = "bgr"
    refusal = str(check_dataset(path.parent, [path], "auto")[path])
    assert f"imf-ray dataset check {path.parent}" in refusal and "data.on_bad" not in refusal
    check_dataset(path.parent, [path], "auto", force=True)
    assert str(path) in caplog.text
    info = check_dataset(path.parent, [path], "auto")[path]
    assert isinstance(info, EpisodeMetadata) and info.images["top"].channel_order == "bgr"


def test_the_list_of_unused_parts_is_short(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with h5py.File(path, "r+") as file:
        file.update({f"camera_log/{number}": number for number in range(1000)})
    config = tiny_config("unused")
    index._log_unread([check_episode(path)], config, path.parent)
    assert "/camera_log/0" in caplog.text and len(caplog.text) < 1000


@pytest.mark.parametrize("value", [0.5, float("nan")])
def test_a_forced_check_accepts_neither_silent_damage_nor_invalid_values(
    path: Path, value: float
) -> None:
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    with h5py.File(path, "r+") as file:
        file["action"][3, 2] = value
    if value == 0.5:  # a flipped bit on a disk changes neither the size nor the time
        os.utime(path, ns=times)
    result = check_dataset(path.parent, [path], "auto", force=True)[path]
    assert isinstance(result, str) and path.name in result
