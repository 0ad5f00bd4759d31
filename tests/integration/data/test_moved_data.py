"""Data sets that were copied, moved, renumbered, or lie in a folder that cannot be written."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from imf_ray.data import index
from imf_ray.data.episode_files import list_episodes
from imf_ray.data.episodes import EpisodeMetadata
from imf_ray.data.index import check_dataset, locate_episodes
from imf_ray.data.source_files import CACHE_DIR
from imf_ray.errors import UserError
from tests.helpers.episode_files import write_act


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three indexed episodes of another program."""
    folder = tmp_path / "data"
    folder.mkdir()
    for number in range(3):
        write_act(folder / f"episode_{number}.hdf5", dim=14 + number)
    _check(folder)
    return folder


def _check(folder: Path) -> list[EpisodeMetadata]:
    results = check_dataset(folder, list_episodes(folder), "auto").values()
    episodes = [result for result in results if isinstance(result, EpisodeMetadata)]
    assert len(episodes) == len(results), results
    return episodes


def _forbid_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a file is checked again")

    monkeypatch.setattr(index, "check_files", refuse)


def _hashes(episodes: list[EpisodeMetadata]) -> list[str]:
    return [episode.content_hash for episode in episodes]


def test_a_copy_with_other_times_is_checked_once(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)  # this also copies the index
    for path in list_episodes(copy):
        os.utime(path, (1, 1))
    assert _hashes(_check(copy)) == _hashes(_check(folder))
    _forbid_checks(monkeypatch)
    _check(copy)


def test_episodes_may_be_renumbered(folder: Path) -> None:
    before = _hashes(_check(folder))
    (folder / "episode_0.hdf5").unlink()
    (folder / "episode_1.hdf5").rename(folder / "episode_0.hdf5")
    (folder / "episode_2.hdf5").rename(folder / "episode1.h5")
    assert _hashes(_check(folder)) == before[1:]


@pytest.mark.parametrize("is_indexed", [True, False])
def test_the_index_of_a_folder_that_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_indexed: bool
) -> None:
    if not is_indexed:
        shutil.rmtree(folder / CACHE_DIR)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write everywhere
    before = sorted(folder.rglob("*"))
    if is_indexed:
        _forbid_checks(monkeypatch)
    first = _check(folder)
    _forbid_checks(monkeypatch)
    assert _check(folder) == first and sorted(folder.rglob("*")) == before


def test_moved_episodes_are_located_by_content(folder: Path, tmp_path: Path) -> None:
    refs = [episode.ref for episode in _check(folder)[1:]]
    assert locate_episodes(refs, tmp_path / "unused", "auto") == refs
    moved = folder.rename(tmp_path / "moved")
    (moved / "episode_1.hdf5").rename(moved / "episode7.h5")
    located = locate_episodes(refs, moved, "auto")
    names = [Path(ref.path).name for ref in located]
    assert names == ["episode7.h5", "episode_2.hdf5"]
    assert [ref.content_hash for ref in located] == [ref.content_hash for ref in refs]
    with pytest.raises(UserError, match=r"episode_1.hdf5.*data\.dataset_dir"):
        locate_episodes(refs, folder, "auto")
    assert not folder.exists()
