"""Which files are episodes, and the messages for folders without any."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from imf_ray.data.episode_files import (
    episode_number,
    list_episodes,
    refuse_other_folders,
    require_episodes,
)
from imf_ray.data.episodes import episode_path
from imf_ray.errors import UserError
from imf_ray.storage import AnyPath, parse_path

EPISODES = {
    "episode_0.hdf5": 0,
    "episode1.hdf5": 1,
    "episode_2.h5": 2,
    "Episode_003.H5": 3,
    "EPISODE_4.HDF5": 4,
    "episode_10.hdf": 10,
}
"""Names of episodes in the order of their numbers."""
OTHERS = (
    "episode_1_bad.hdf5",
    "episode_0 (copy).hdf5",
    "episode_1.hdf5.bak",
    "episode_1.hdf5~",
    "episode_-1.hdf5",
    "episode_1.5.hdf5",
    "episode_.hdf5",
    "episode__7.hdf5",
    "demo_0.hdf5",
    "my_episode_5.hdf5",
    ".episode_6.hdf5",
    ".episode_6.hdf5.123.partial",
    "._episode_0.hdf5",
    "episode_\u0663.hdf5",  # an Arabic digit
    "episode_1.he5",
    "episode_2",
    "Episode 3.hd5",
    "_episode-4.h5py",
    "demo.nc",
)
"""Names of HDF5 files that are no episodes."""
UNRELATED = ("episode_0.mp4", "notes.txt", "dataset_stats.pkl", "episodes.csv")


@pytest.fixture(params=["folder", "url"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> AnyPath:
    """A local folder, or one under a URL."""
    if request.param == "folder":
        return tmp_path / "data"
    return parse_path(f"memory://{tmp_path.name}/data")


def _touch(path: AnyPath) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_episodes_are_recognized_by_name_and_sorted_by_number(
    folder: AnyPath, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (*reversed(EPISODES), *OTHERS, *UNRELATED):
        _touch(folder / name)
    _touch(folder / "episode_8.hdf5" / "file")  # a folder named like an episode
    with caplog.at_level(logging.WARNING):
        files = require_episodes(folder)
    assert [path.name for path in files] == list(EPISODES)
    assert [episode_number(path.name) for path in files] == list(EPISODES.values())
    assert list_episodes(folder) == files
    assert all(name in caplog.text for name in (*OTHERS, "episode_8.hdf5/"))
    assert not any(name in caplog.text for name in UNRELATED)


def test_the_names_of_new_episodes_are_recognized(tmp_path: Path) -> None:
    assert [episode_number(episode_path(tmp_path, n).name) for n in (0, 7, 1234)] == [0, 7, 1234]


@pytest.mark.parametrize(
    "names",
    [
        ("episode_1.hdf5", "episode1.h5"),
        ("episode_01.hdf5", "episode_1.hdf5"),
        ("episode_1.hdf5", "EPISODE_1.hdf5"),
    ],
)
def test_two_files_of_one_number_are_an_error(folder: AnyPath, names: tuple[str, ...]) -> None:
    for name in names:
        _touch(folder / name)
    with pytest.raises(UserError) as error:
        list_episodes(folder)
    assert all(name in str(error.value) for name in names)


@pytest.mark.parametrize(
    ("files", "path", "named"),
    [
        ([], "data", ["does not exist", "imf_ray.collect"]),
        (["data/notes.txt"], "data", ["imf_ray.collect"]),
        (["data/demo_0.hdf5", "data/x_bad.h5"], "data", ["demo_0.hdf5", "x_bad.h5", "episode_"]),
        (["data/episode_0.he5"], "data", ["Rename", "episode_0.he5"]),
        (["data/episode_0"], "data", ["Rename", "episode_0"]),
        (["data/episode_0.hdf5.gz"], "data", ["Unpack episode_0.hdf5.gz"]),
        (["data/episode_0.h5.part", "data/b.zip"], "data", ["not complete: episode_0", "Unpack b"]),
        (["data/a/episode_0.h5", "data/b/x.txt"], "data", ["data.dataset_dir={}/data/a"]),
        (["data/raw/a/episode0.hdf5"], "data", ["data.dataset_dir={}/data/raw/a"]),
        (["data/episode_0.hdf5", "data/images/x.png"], "data/images", ["data.dataset_dir={}/data"]),
        (["data/all.zip"], "data", ["Unpack all.zip"]),
        (["data.tar.gz"], "data.tar.gz", ["is a file", "Unpack"]),
        (["data/episode_0.hdf5"], "data/episode_0.hdf5", ["is a file", "data.dataset_dir={}/data"]),
        (["all.hdf5"], "all.hdf5", ["is a file", "episode_NUMBER"]),
    ],
)
def test_a_folder_without_episodes_is_explained(
    folder: AnyPath, files: list[str], path: str, named: list[str]
) -> None:
    root = folder.parent
    for name in files:
        _touch(root / name)
    assert list_episodes(root / path) == []
    with pytest.raises(UserError) as error:
        require_episodes(root / path)
    assert all(text.format(root) in str(error.value) for text in named), error.value


WRITTEN = {
    "a checkpoint": ("config.yaml", "manifest.json", "model.safetensors"),
    "an incomplete checkpoint": ("config.yaml", "trainer_state.pt"),
    "the folder of a run": ("config.yaml", "metrics.jsonl"),
    "the folder of a sweep": ("config.yaml", "space.json"),
    "a folder of runs": ("mine/config.yaml", "mine/metrics.jsonl"),
    "the output of an evaluation": ("episodes.jsonl",),
}
"""Kinds of folders that imf_ray writes, and files by which they are recognized."""


@pytest.mark.parametrize("kind", WRITTEN)
def test_a_folder_of_training_is_named_and_no_collection_is_advised(
    kind: str, folder: AnyPath
) -> None:
    for name in WRITTEN[kind]:
        _touch(folder / name)
    if "config.yaml" in WRITTEN[kind]:
        (folder / "config.yaml").write_text("data:\n  dataset_dir: /demos/007\n")
    with pytest.raises(UserError) as error:
        require_episodes(folder)
    message = str(error.value)
    assert message.startswith(f"data.dataset_dir={folder} is {kind}") and "ollect" not in message
    assert ("data.dataset_dir=/demos/007" in message) == ("config.yaml" in WRITTEN[kind])
    with pytest.raises(UserError, match=kind):
        refuse_other_folders(folder)


def test_demonstrations_can_be_recorded_into_other_folders(tmp_path: Path) -> None:
    refuse_other_folders(tmp_path / "new")
    refuse_other_folders(tmp_path)
    (tmp_path / "notes.txt").touch()
    refuse_other_folders(tmp_path)
    _touch(episode_path(tmp_path, 0))
    refuse_other_folders(tmp_path)
