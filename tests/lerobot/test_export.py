"""LeRobot itself reads what `dataset convert` writes (`make test-lerobot`)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from imf_ray.config import load_config
from imf_ray.data.dataset_folder import find_dataset
from imf_ray.data.episodes import EpisodeFields, EpisodeSlice
from imf_ray.data.readers import check_episode, read_slice
from imf_ray.dataset import main as dataset
from imf_ray.sim.bimanual import CONTROL_HZ
from imf_ray.storage import parse_path
from tests.helpers import REPO_ROOT

PYTHON = os.environ.get("LEROBOT_PYTHON", "")
"""Python of an environment with LeRobot, which `make test-lerobot` makes."""
READER = REPO_ROOT / "tests/lerobot/read_with_lerobot.py"
CAMERAS = ("r_vis", "top", "front")
CHUNK = 5

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("ray_cluster"),
    pytest.mark.skipif(not PYTHON, reason="LEROBOT_PYTHON is not set: run `make test-lerobot`"),
]


def read_with_lerobot(folder: Path, indices: list[int], output: Path) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(output.parent / "hf")}
    environment.pop("PYTHONPATH", None)
    arguments = [folder, output, CHUNK, *indices]
    command = [PYTHON, str(READER), *map(str, arguments)]
    subprocess.run(command, check=True, env=environment)
    with np.load(output) as file:
        return dict(file)


def whole_episodes(folder: Path) -> list[EpisodeSlice]:
    format, paths = find_dataset(parse_path(folder))
    infos = [check_episode(path, format) for path in paths]
    return [read_slice(i.ref, EpisodeFields(CAMERAS), (0, i.length), (0, i.length)) for i in infos]


@pytest.mark.parametrize("codec", ["av1", "h264", "png"])
def test_lerobot_reads_an_export(codec: str, demonstrations: Path, tmp_path: Path) -> None:
    target = tmp_path / "export"
    options = [f"convert.codec={codec}"]
    dataset(load_config(options), options, ["convert", str(demonstrations), str(target)])
    whole = whole_episodes(demonstrations)
    exported = whole_episodes(target)
    ends = np.cumsum([episode.length for episode in whole])
    total = int(ends[-1])
    indices = [0, 1, total // 2, int(ends[0]) - 1, int(ends[0]), total - 2]
    read = read_with_lerobot(target, indices, tmp_path / "read.npz")

    assert (read["all/observation.state"] == np.concatenate([e.qpos for e in whole])).all()
    assert (read["all/action"] == np.concatenate([e.action for e in whole])).all()
    assert (read["all/index"] == np.arange(total)).all()
    lengths = np.bincount(read["all/episode_index"])
    assert lengths.tolist() == [episode.length for episode in whole]
    assert read["fps"] == CONTROL_HZ
    actions = np.concatenate([e.action for e in whole]).astype(np.float64)
    assert np.abs(read["statistics"] - actions.mean(axis=0)).max() < 1e-5
    for index in indices:
        number = int(np.searchsorted(ends, index, side="right"))
        step = index - (int(ends[number - 1]) if number else 0)
        episode = whole[number]
        last = min(CHUNK, episode.length - step)
        assert (read[f"{index}/action_is_pad"] == (np.arange(CHUNK) >= last)).all()
        assert (read[f"{index}/action"][:last] == episode.action[step : step + last]).all()
        for camera in CAMERAS:
            image = read[f"{index}/observation.images.{camera}"].transpose(1, 2, 0) * 255
            assert np.abs(image - exported[number].images[camera][step]).max() < 1.0
            if codec == "png":
                assert (exported[number].images[camera] == episode.images[camera]).all()
