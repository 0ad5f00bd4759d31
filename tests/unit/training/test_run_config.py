"""Names of runs and of their folders in Ray Train."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from ray.train import FailureConfig

from imf_ray.ray_internals import metric_tag
from imf_ray.training.gauges import RunGauges
from imf_ray.training.run_config import make_run_config
from imf_ray.training.run_dir import RunDir

NAMES = (
    "run",
    "run #2",
    "100% a/b".replace("/", "?"),
    "größe",
    "訓練",
    "run 🤖",
    "e\u0301",
    "\u202ex",
)


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_keeps_its_name_and_the_run_gets_an_ascii_name(
    name: str, tmp_path: Path
) -> None:
    config = make_run_config(RunDir(tmp_path / name), failure_config=FailureConfig(max_failures=7))
    received = pickle.loads(pickle.dumps(config))  # by the controller
    assert received.name.isascii() and received.failure_config.max_failures == 7
    assert received.storage_context.experiment_fs_path == str(tmp_path / name)
    assert (tmp_path / name).is_dir()


@pytest.mark.parametrize("name", NAMES)
def test_the_gauges_of_a_run_accept_any_name(name: str) -> None:
    gauges = RunGauges(Path(name), max_steps=10)
    gauges.add({"step": 1, "loss": 0.5})
    gauges.close()


def test_ascii_names_stay_and_different_names_differ() -> None:
    assert metric_tag("a b#%c") == "a b#%c"
    assert len({metric_tag(name) for name in NAMES}) == len(NAMES)
