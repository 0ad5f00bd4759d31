"""Functions that programs call with paths of their own take text as well as `Path`."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from imf_ray.data import index
from imf_ray.data.episode_files import list_episodes, require_episodes
from imf_ray.data.episodes import episode_path
from imf_ray.data.hdf5.check import check_episode
from imf_ray.data.index import check_dataset
from imf_ray.errors import UserError
from imf_ray.folders import FolderKind, folder_kind
from imf_ray.rollout.record_store import read_records
from imf_ray.sweep.sweep_dir import SweepDir
from imf_ray.training.run_dir import RunDir
from tests.helpers.episode_files import write_act


@pytest.mark.parametrize("form", ["{}", "{}/", "~/demos", "demos", "./demos"])
def test_text_names_the_same_folder_as_a_path(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "demos"
    folder.mkdir()
    text = form.format(folder)
    path = episode_path(text, 0).expanduser()
    write_act(path)
    files = list_episodes(text)
    assert files == list_episodes(folder) == require_episodes(text)
    assert check_episode(str(files[0])) == check_episode(files[0])
    monkeypatch.setattr(
        index, "check_files", lambda paths, *_: [(p, check_episode(p)) for p in paths]
    )
    assert check_dataset(text, [str(file) for file in files], "auto") == check_dataset(
        folder, files, "auto"
    )
    assert folder_kind(text) == FolderKind.DATA_SET
    with h5py.File(path):
        assert read_records(f"{text}/episodes.jsonl") == []


def test_a_missing_folder_as_text(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    assert list_episodes(missing) == [] and folder_kind(missing) == FolderKind.MISSING
    with pytest.raises(UserError, match=missing):
        require_episodes(missing)
    with pytest.raises(UserError, match=missing):
        check_episode(missing)


@pytest.mark.parametrize("kind", [RunDir, SweepDir])
def test_the_folder_of_a_run_as_text(
    kind: type[RunDir] | type[SweepDir], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for text in ("runs/mine", "~/runs/mine", f"{tmp_path}/runs/mine/"):
        assert kind(text).path == tmp_path / "runs" / "mine"  # type: ignore[arg-type]
    assert str(kind("memory://runs/mine")) == "memory://runs/mine"  # type: ignore[arg-type]
