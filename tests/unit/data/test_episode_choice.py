"""A run chooses episodes by number or by task."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imf_ray.config import load_config
from imf_ray.data.dataset_folder import find_dataset
from imf_ray.data.episode_choice import choose_episodes, choose_tasks
from imf_ray.data.readers import check_episode
from imf_ray.errors import UserError
from tests.helpers.foreign_data import write_lerobot_v21


def test_numbers() -> None:
    paths = [Path(f"set/{name}") for name in ("episode_0.hdf5", "episode_7.h5", "demo_12")]
    assert choose_episodes(paths, []) == paths
    assert choose_episodes(paths, [12, 0]) == [paths[0], paths[2]]
    with pytest.raises(UserError, match=r"data.episodes=\[3, 7\] .* not there: 3\. .* 0 to 12, 3 "):
        choose_episodes(paths, [3, 7])


def test_tasks(tmp_path: Path) -> None:
    write_lerobot_v21(tmp_path, episodes=3)
    listing = tmp_path / "meta/episodes.jsonl"
    lines = [json.loads(line) for line in listing.read_text().splitlines()]
    lines[1]["tasks"] = ["pull the drawer"]
    listing.write_text("\n".join(map(json.dumps, lines)))
    format, paths = find_dataset(tmp_path)
    results = {path: check_episode(path, format) for path in paths}
    assert list(choose_tasks(results, ["pull the drawer"])) == [paths[1]]
    assert list(choose_tasks(results, [])) == paths
    with pytest.raises(UserError, match=r"no.*'lift'.*'pull the drawer', 'push'|'lift'.*'push'"):
        choose_tasks(results, ["lift"])


def test_options() -> None:
    config = load_config(["data.episodes=[0,2]", "data.tasks=[push, pull the drawer]"])
    assert config.data.episodes == [0, 2] and config.data.tasks == ["push", "pull the drawer"]
