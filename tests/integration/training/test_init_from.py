"""A run that starts with the weights of another run's checkpoint."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from imf_ray.agents.pretrained import load_agent
from imf_ray.allocation import allocate_run
from imf_ray.cluster import ClusterSize
from imf_ray.errors import UserError
from imf_ray.training.run_dir import RunDir
from imf_ray.training.trainer import fit, prepare_run, starting_weights
from tests.helpers.configs import LOGICAL_CPUS, LOGICAL_GPUS, tiny_config


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_takes_the_encoders_of_a_checkpoint_and_keeps_them(
    demonstrations: Path, tmp_path: Path
) -> None:
    size = ClusterSize(((float(LOGICAL_CPUS), float(LOGICAL_GPUS)),))
    options = ("train.max_steps=1", "train.ema=false")
    first = RunDir(tmp_path / "first")
    config = tiny_config(demonstrations, *options)
    fit(prepare_run(config), first, allocate_run(config, size))
    source, _ = load_agent(first.checkpoint(1))

    second = RunDir(tmp_path / "second")
    config = tiny_config(
        demonstrations,
        "train.max_steps=3",
        "train.save_freq=1",
        "train.keep_last_k=3",
        "train.ema=false",
        f"train.init_from={first.checkpoint(1)}",
        "train.init_parts=encoders",
        "agent.vision_backbone.freeze_encoders=true",
        "agent.head.n_emb=48",
    )
    initial = starting_weights(config, second)
    fit(prepare_run(config), second, allocate_run(config, size), initial=initial)
    weights = load_agent(second.checkpoint(3))[0].state_dict()
    encoders = [name for name in weights if name.startswith("vision_encoder.")]
    assert encoders and all(torch.equal(weights[n], source.state_dict()[n]) for n in encoders)
    # A resumed run encodes the images in another order, and gets the same features.
    for step in (2, 3):
        shutil.rmtree(second.checkpoint(step))
    fit(prepare_run(config), second, allocate_run(config, size))
    resumed = load_agent(second.checkpoint(3))[0].state_dict()
    assert all(torch.equal(resumed[name], weights[name]) for name in weights)
    record = second.read_init_record()
    assert record is not None and record.source == str(first.checkpoint(1))

    without = dataclasses.replace(config, train=dataclasses.replace(config.train, init_from=None))
    with pytest.raises(UserError, match=r"train.init_from was \S+ and is None"):
        fit(prepare_run(without), second, allocate_run(without, size))
