"""The index notices changed and copied files of other programs."""

from __future__ import annotations

import io
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import pytest
from rich.console import Console, RenderableType

from imf_ray.config import load_config
from imf_ray.data import index
from imf_ray.data.episode_files import list_episodes
from imf_ray.data.episodes import EpisodeMetadata, find_copies
from imf_ray.data.hdf5.check import check_episode
from imf_ray.data.index import build_index, check_dataset
from imf_ray.data.visualize import check_table, episodes_summary
from tests.helpers.configs import tiny_config
from tests.helpers.episode_files import write_act

ACT_OPTIONS = (
    "data.resize_images=true",
    "agent.state_dim=14",
    "agent.action_dim=14",
    "agent.aux_pose_objects=[]",
)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an indexed file. Files are checked in this process."""

    def check_files(
        paths: Sequence[Path], format: str, features: object
    ) -> Iterator[tuple[Path, EpisodeMetadata]]:
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


def test_copies_of_an_episode_are_named_once(
    path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy has the same contents, also in another storage layout and under another suffix."""
    folder = path.parent
    for name in ("episode_3.hdf5", "episode_10.h5"):
        shutil.copy(path, folder / name)
    with h5py.File(path) as source, h5py.File(folder / "episode_4.hdf5", "w") as file:
        for part in source:
            source.copy(part, file)
        file.attrs.update(source.attrs)
        values = file["action"][:]
        del file["action"]
        file.create_dataset("action", data=values, chunks=(1, 14), compression="gzip")
    write_act(folder / "episode_5.hdf5", dim=7)
    results = check_dataset(folder, list_episodes(folder), "auto")
    episodes = [info for info in results.values() if isinstance(info, EpisodeMetadata)]
    assert [Path(copy).name for copy in find_copies(episodes)] == [
        "episode_3.hdf5",
        "episode_4.hdf5",
        "episode_10.h5",
    ]
    index._log_copies(episodes, folder)
    (record,) = caplog.records
    for text in (record.getMessage(), shown(check_table(results))):
        assert "episode_10.h5" in text and "episode_4.hdf5" in text
        assert "cop" in text
    assert "episode_10.h5 (of episode_0.hdf5)" in shown(episodes_summary(episodes, "auto"))
    caplog.clear()
    index._log_copies([episodes[0], episodes[-2]], folder)
    assert not caplog.records
    # Training reports them.
    logged: list[Any] = []
    monkeypatch.setattr(index, "_log_copies", lambda *arguments: logged.append(arguments))
    (folder / "episode_5.hdf5").unlink()
    overrides = [f"data.dataset_dir={folder}", "data.camera_names=[top]", *ACT_OPTIONS]
    assert len(build_index(load_config(overrides)).episodes) == 4
    assert len(logged) == 1


def shown(text: RenderableType) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(text)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
