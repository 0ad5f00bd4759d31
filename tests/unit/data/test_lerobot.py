"""LeRobot data sets are read as LeRobot reads them, and damaged ones are refused by name."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from imf_ray.data.dataset_folder import find_dataset, list_dataset
from imf_ray.data.episodes import EpisodeFields
from imf_ray.data.readers import LEROBOT, check_episode, read_slice
from imf_ray.errors import UserError
from tests.helpers import REPO_ROOT
from tests.helpers.episode_files import LENGTH, smooth_images
from tests.helpers.foreign_data import (
    ACTION_DIM,
    CAMERA,
    FPS,
    STATE_DIM,
    table_path,
    vectors,
    video_path,
    write_lerobot_v21,
    write_table,
    write_video,
)

GOLDEN = REPO_ROOT / "tests/golden/lerobot_v30"
CAMERAS = ("r_vis", "top", "front")


def _episodes(folder: Path) -> list[Path]:
    format, paths = find_dataset(folder)
    assert format == LEROBOT
    return [Path(str(path)) for path in paths]


@pytest.mark.parametrize("kind", ["videos", "images"])
def test_golden_samples(kind: str) -> None:
    infos = [check_episode(path, LEROBOT) for path in _episodes(GOLDEN / f"{kind}_dataset")]
    assert [info.problems for info in infos] == [{}] * 3
    starts = np.cumsum([0, *(info.length for info in infos)])
    with np.load(GOLDEN / f"{kind}_expected.npz") as expected:
        indices = sorted({int(key.partition("/")[0]) for key in expected})
        assert len(indices) == 4
        for index in indices:
            number = int(np.searchsorted(starts, index, side="right")) - 1
            step = (index - int(starts[number]), index - int(starts[number]) + 1)
            part = read_slice(infos[number].ref, EpisodeFields(CAMERAS), step, step)
            assert (part.qpos[0] == expected[f"{index}/observation.state"]).all()
            assert (part.action[0] == expected[f"{index}/action"]).all()
            for camera in CAMERAS:
                image = expected[f"{index}/observation.images.{camera}"].transpose(1, 2, 0) * 255
                assert np.abs(part.images[camera][0] - image).max() <= 1


def test_every_frame_is_the_one_that_a_plain_decoder_gives() -> None:
    folder = GOLDEN / "videos_dataset"
    infos = [check_episode(path, LEROBOT) for path in _episodes(folder)]
    for camera in CAMERAS:
        video = folder / f"videos/observation.images.{camera}/chunk-000/file-000.mp4"
        with av.open(str(video)) as container:
            frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        read = [
            read_slice(info.ref, EpisodeFields((camera,)), (start, start + 40), (0, 1))
            for info in infos
            for start in range(0, info.length, 40)
        ]
        assert (np.concatenate([part.images[camera] for part in read]) == np.stack(frames)).all()


def test_v21(tmp_path: Path) -> None:
    write_lerobot_v21(tmp_path)
    first, second = (check_episode(path, LEROBOT) for path in _episodes(tmp_path))
    assert first.length == LENGTH and first.problems == {} and first.unused_datasets == ()
    assert first.attributes["control_hz"] == FPS and first.attributes["tasks"] == ["push"]
    assert first.content_hash != second.content_hash
    part = read_slice(second.ref, EpisodeFields(("top",)), (3, 9), (2, 12))
    assert (part.qpos == vectors(1, STATE_DIM)[3:9]).all()
    assert (part.action == vectors(10, ACTION_DIM)[2:12]).all()
    assert np.abs(part.images["top"].astype(int) - smooth_images(1)[3:9]).mean() < 6


def test_other_names_and_parts_of_vectors(tmp_path: Path) -> None:
    write_lerobot_v21(tmp_path, names=("state", "actions", "wrist_image"))
    path = _episodes(tmp_path)[0]
    info = check_episode(path, LEROBOT)
    assert info.features.state == ("state",) and info.features.actions == {"joint": ("actions",)}
    assert list(info.images) == ["wrist_image"]
    option = {"state": ["state[3:5]", "state[0:1]"], "wrist": ["wrist_image"]}
    mapped = check_episode(path, LEROBOT, option)
    stats = mapped.vector_stats(mapped.features.state)
    assert stats is not None and len(stats.mean) == 3 and list(mapped.images) == ["wrist"]
    part = read_slice(mapped.ref, EpisodeFields(("wrist",), features=option), (0, 4), (0, 4))
    assert (part.qpos == vectors(0, STATE_DIM)[:4, [3, 4, 0]]).all()


def test_a_moved_episode_keeps_its_content_hash(tmp_path: Path) -> None:
    write_lerobot_v21(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    os.utime(table_path(tmp_path / "b", 0))
    original = check_episode(_episodes(tmp_path / "a")[0], LEROBOT)
    copy = check_episode(_episodes(tmp_path / "b")[0], LEROBOT)
    assert copy.content_hash == original.content_hash and copy.fingerprint != original.fingerprint


def _edit_info(folder: Path, **values: object) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _nan(folder: Path) -> None:
    state = vectors(0, STATE_DIM)
    state[5, 2] = np.nan
    write_table(folder, 0, {"observation.state": state, "action": vectors(9, ACTION_DIM)})


def _short_table(folder: Path) -> None:
    values = {
        "observation.state": vectors(0, STATE_DIM)[:-1],
        "action": vectors(9, ACTION_DIM)[:-1],
    }
    write_table(folder, 0, values)


def _wrong_times(folder: Path) -> None:
    values = {"observation.state": vectors(0, STATE_DIM), "action": vectors(9, ACTION_DIM)}
    write_table(folder, 0, values, times=list(np.arange(LENGTH) / FPS + 0.03))


def _cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing video": (
        lambda folder: video_path(folder, 0).unlink(),
        r"episode_000000\.mp4 is missing",
    ),
    "folder video": (
        lambda folder: (folder / "videos").rename(folder / "video"),
        r"is missing.*a folder video/",
    ),
    "other codec": (
        lambda folder: write_video(video_path(folder, 0), smooth_images(0), "mpeg4"),
        r"is mpeg4, but meta/info\.json says h264",
    ),
    "short video": (
        lambda folder: write_video(video_path(folder, 0), smooth_images(0)[:-2]),
        r"has no frame at 1\.0000 s",
    ),
    "no video": (lambda folder: video_path(folder, 0).write_bytes(b"text"), "cannot be decoded"),
    "cut-off video": (lambda folder: _cut_off(video_path(folder, 0)), "cannot be decoded|no frame"),
    "missing table": (lambda folder: table_path(folder, 0).unlink(), "its table .* is missing"),
    "cut-off table": (lambda folder: _cut_off(table_path(folder, 0)), "cannot be read"),
    "short table": (_short_table, "has 11 rows of it, but meta/ says that it has 12 steps"),
    "not a number": (_nan, "observation.state has NaN.* at step 5 in dimension 2"),
    "wrong times": (_wrong_times, "has no frame at 0.0300 s"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_episode_is_refused(kind: str, tmp_path: Path) -> None:
    write_lerobot_v21(tmp_path)
    damage, expected = DAMAGE[kind]
    damage(tmp_path)
    path = _episodes(tmp_path)[0]
    try:
        reason = check_episode(path, LEROBOT).required_problem
    except UserError as error:
        reason = str(error)
        assert str(path) in reason
    assert re.search(expected, str(reason))


METADATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "no JSON": (lambda folder: (folder / "meta/info.json").write_text("{"), "not valid JSON"),
    "old version": (lambda folder: _edit_info(folder, codebase_version="v1.6"), "version v1.6"),
    "total": (lambda folder: _edit_info(folder, total_episodes=7), "total_episodes=7.* 2 episodes"),
    "rate": (lambda folder: _edit_info(folder, fps=29.97), "fps=29.97"),
    "no features": (lambda folder: _edit_info(folder, features=None), "cannot be read"),
    "path": (lambda folder: _edit_info(folder, data_path="../x"), "leads out of the folder"),
    "no episodes": (lambda folder: (folder / "meta/episodes.jsonl").unlink(), "finalize"),
}


@pytest.mark.parametrize("kind", METADATA)
def test_damaged_metadata_is_refused(kind: str, tmp_path: Path) -> None:
    write_lerobot_v21(tmp_path)
    damage, expected = METADATA[kind]
    damage(tmp_path)
    with pytest.raises(UserError, match=expected):
        list_dataset(tmp_path)


def test_an_unknown_feature_is_refused(tmp_path: Path) -> None:
    write_lerobot_v21(tmp_path)
    with pytest.raises(UserError, match=f"must name one camera .*{CAMERA}"):
        check_episode(_episodes(tmp_path)[0], LEROBOT, {"front": ["observation.images.front"]})
    with pytest.raises(UserError, match=r"must name vectors .*observation\.state, action"):
        check_episode(_episodes(tmp_path)[0], LEROBOT, {"state": ["qpos"]})
