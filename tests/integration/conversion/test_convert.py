"""A data set is converted to LeRobot's format and back, and a stopped conversion resumes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from imf_ray.config import load_config
from imf_ray.conversion import action, run
from imf_ray.data.dataset_folder import find_dataset
from imf_ray.data.episodes import EpisodeFields, EpisodeSlice
from imf_ray.data.readers import check_episode, read_slice
from imf_ray.dataset import main as dataset
from imf_ray.errors import UserError
from imf_ray.storage import parse_path
from tests.helpers import REPO_ROOT
from tests.helpers.foreign_data import FPS, write_diffusion_policy, write_lerobot_v21

pytestmark = pytest.mark.usefixtures("ray_cluster")
GOLDEN = REPO_ROOT / "tests/golden/lerobot_v30"
CAMERAS = ("r_vis", "top", "front")


def convert(source: Path, target: Path, *options: str) -> None:
    dataset(load_config(options), options, ["convert", str(source), str(target)])


def whole_episodes(folder: Path, cameras: tuple[str, ...] = CAMERAS) -> list[EpisodeSlice]:
    format, paths = find_dataset(parse_path(folder))
    infos = [check_episode(path, format) for path in paths]
    return [read_slice(i.ref, EpisodeFields(cameras), (0, i.length), (0, i.length)) for i in infos]


def assert_equal(left: list[EpisodeSlice], right: list[EpisodeSlice], tolerance: float) -> None:
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert np.array_equal(a.qpos, b.qpos) and np.array_equal(a.action, b.action)
        for camera, images in a.images.items():
            difference = np.abs(images.astype(int) - b.images[camera])
            assert difference.mean() <= tolerance


def test_there_and_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = GOLDEN / "images_dataset"
    original = whole_episodes(source)
    convert(source, tmp_path / "hdf5", "convert.format=imf_ray")
    assert_equal(original, whole_episodes(tmp_path / "hdf5"), tolerance=0)
    convert(tmp_path / "hdf5", tmp_path / "png", "convert.codec=png")
    assert_equal(original, whole_episodes(tmp_path / "png"), tolerance=0)
    capsys.readouterr()
    convert(tmp_path / "png", tmp_path / "video")
    assert_equal(original, whole_episodes(tmp_path / "video"), tolerance=5)
    assert "Encoding changed the images of top by " in capsys.readouterr().out

    info, expected = (
        json.loads((folder / "meta/info.json").read_text())
        for folder in (tmp_path / "video", GOLDEN / "videos_dataset")
    )
    assert info["features"].keys() == expected["features"].keys()
    for key in ("dtype", "shape"):
        for name, feature in expected["features"].items():
            assert info["features"][name][key] == feature[key]
    stats, wanted = (
        json.loads((folder / "meta/stats.json").read_text())
        for folder in (tmp_path / "png", source)
    )
    for feature in ("observation.state", "action", "timestamp", "index"):
        for name in ("min", "max", "mean", "count"):
            assert stats[feature][name] == pytest.approx(wanted[feature][name], abs=1e-5)
    states = np.concatenate([episode.qpos for episode in original]).astype(np.float64)
    assert stats["observation.state"]["std"] == pytest.approx(states.std(axis=0), abs=1e-9)
    for name in ("mean", "std"):
        found, known = (np.array(s["observation.images.top"][name]) for s in (stats, wanted))
        assert found.shape == (3, 1, 1) and np.abs(found - known).max() < 0.02
    columns = pq.read_schema(tmp_path / "video/meta/episodes/chunk-000/file-000.parquet").names
    known_columns = pq.read_schema(
        GOLDEN / "videos_dataset/meta/episodes/chunk-000/file-000.parquet"
    ).names
    assert set(columns) == set(known_columns)


def test_a_stopped_conversion_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_lerobot_v21(tmp_path / "source", episodes=3)
    target = tmp_path / "target"

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(action, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(tmp_path / "source", target, "convert.codec=png")
    with pytest.raises(UserError, match=r"unfinished conversion .* other options"):
        convert(tmp_path / "source", target, "convert.codec=h264")
    with pytest.raises(UserError, match=r"unfinished conversion .* other options"):
        part = 'data.features={state: ["observation.state[0:2]"]}'
        convert(tmp_path / "source", target, "convert.codec=png", part)
    record = next(target.glob(".imf_ray/conversion/episode_1.json"))
    table = target / "data/chunk-000/file-000.parquet"
    written_at = table.stat().st_mtime_ns
    record.unlink()
    convert(tmp_path / "source", target, "convert.codec=png")
    assert table.stat().st_mtime_ns == written_at
    cameras = ("top",)
    assert_equal(whole_episodes(tmp_path / "source", cameras), whole_episodes(target, cameras), 0)
    with pytest.raises(UserError, match="is not empty"):
        convert(tmp_path / "source", target, "convert.codec=png")


def test_sizes_rates_and_tasks(tmp_path: Path) -> None:
    write_diffusion_policy(tmp_path / "source")
    with pytest.raises(UserError, match=r"does not say its rate. Set convert\.fps"):
        convert(tmp_path / "source", tmp_path / "target")
    with pytest.raises(UserError, match="15x15, but videos need even sides"):
        convert(
            tmp_path / "source", tmp_path / "target", f"convert.fps={FPS}", "convert.image_size=15"
        )
    convert(tmp_path / "source", tmp_path / "target", f"convert.fps={FPS}", "convert.image_size=16")
    format, paths = find_dataset(tmp_path / "target")
    info = check_episode(paths[2], format)
    assert info.cameras == {"img": (16, 16)} and info.attributes["control_hz"] == FPS
    assert info.attributes["tasks"] == [run.UNKNOWN_TASK]
