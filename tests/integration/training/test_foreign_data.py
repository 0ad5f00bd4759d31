"""Runs on data sets of other projects, without a simulator: they follow the data and resume."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imf_ray.allocation import allocate_run
from imf_ray.checkpoint_dir import CONFIG_FILE, WEIGHTS_FILE
from imf_ray.cluster import ClusterSize
from imf_ray.config import load_config
from imf_ray.folders import DATA_MANIFEST_FILE
from imf_ray.training.run_check import check_run
from imf_ray.training.run_dir import RunDir
from imf_ray.training.trainer import fit
from testing_support.configs import TINY_AGENT
from tests.helpers.configs import LOGICAL_CPUS, LOGICAL_GPUS, TINY_TRAINING
from tests.helpers.foreign_data import (
    ACTION_DIM,
    FPS,
    STATE_DIM,
    write_diffusion_policy,
    write_lerobot_v21,
    write_robomimic,
)

SIZE = ClusterSize(((float(LOGICAL_CPUS), float(LOGICAL_GPUS)),))
OPTIONS = (
    "agent=resnet_imf_attnres_multitoken",
    "task=none",
    *TINY_AGENT,
    *TINY_TRAINING,
    "data.resize_images=true",
    "train.save_freq=2",
    "train.rollout_validate_on_checkpoint=true",
    "train.log_sample_ids=true",
)
DATA: dict[str, tuple[Callable[[Path], None], str, tuple[int, int, list[str]]]] = {
    "lerobot": (write_lerobot_v21, "set", (STATE_DIM, ACTION_DIM, ["top"])),
    "diffusion_policy": (write_diffusion_policy, "set.zarr", (STATE_DIM, 2, ["img"])),
    "robomimic": (
        write_robomimic,
        "set.hdf5",
        (9, ACTION_DIM, ["agentview", "robot0_eye_in_hand"]),
    ),
}

pytestmark = pytest.mark.usefixtures("ray_cluster")


@pytest.mark.parametrize("kind", DATA)
def test_a_run_follows_its_data(kind: str, tmp_path: Path) -> None:
    write, name, (state_dim, action_dim, cameras) = DATA[kind]
    write(tmp_path / name)
    overrides = [*OPTIONS, f"data.dataset_dir={tmp_path / name}"]
    whole = RunDir(tmp_path / "whole")
    checked = check_run(load_config(overrides), overrides, whole)
    config = checked.prepared.config
    assert (config.agent.state_dim, config.agent.action_dim) == (state_dim, action_dim)
    assert config.data.camera_names == config.agent.camera_names == cameras
    assert f"agent.action_dim={action_dim}" in str(checked.followed)
    resources = allocate_run(config, SIZE)
    fit(checked.prepared, whole, resources)
    metrics = whole.best_checkpoint().metrics
    errors = [metrics[name] for name in ("action_mae", "action_mae_hold", "action_mae_mean")]
    assert all(error > 0.0 for error in errors) and "rollout/success_rate" not in metrics
    if kind != "lerobot":
        return
    assert config.task.control_hz == FPS

    half = RunDir(tmp_path / "half")
    half.path.mkdir()
    shutil.copytree(whole.checkpoint(2), half.checkpoint(2))
    for file in (CONFIG_FILE, DATA_MANIFEST_FILE):
        shutil.copy(whole.path / file, half.path)
    fit(check_run(load_config(overrides), overrides, half).prepared, half, resources)
    expected, resumed = (load_file(run.checkpoint(4) / WEIGHTS_FILE) for run in (whole, half))
    assert all(torch.equal(expected[key], resumed[key]) for key in expected)
    logs = [
        [json.loads(line) for line in (run.path / "samples_rank_0.jsonl").read_text().splitlines()]
        for run in (whole, half)
    ]
    assert logs[0][-2:] == logs[1]


def test_given_options_that_contradict_the_data_are_refused(tmp_path: Path) -> None:
    write_lerobot_v21(tmp_path / "set")
    overrides = [*OPTIONS, f"data.dataset_dir={tmp_path / 'set'}", "agent.state_dim=7"]
    with pytest.raises(Exception, match=r"observation\.state is 5 wide, but agent\.state_dim=7"):
        check_run(load_config(overrides), overrides, RunDir(tmp_path / "run"))
