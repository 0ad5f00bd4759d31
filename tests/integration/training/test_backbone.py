"""Pretrained weights on the way to the workers, in a run whose name is not ASCII."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from imf_ray.agents.initial_weights import InitialWeights
from imf_ray.agents.pretrained import load_agent
from imf_ray.allocation import allocate_run
from imf_ray.cluster import ClusterSize
from imf_ray.models.vision import ResNetTrunk
from imf_ray.training.run_dir import RunDir
from imf_ray.training.trainer import fit, prepare_run
from tests.helpers.configs import LOGICAL_CPUS, LOGICAL_GPUS, tiny_config

WEIGHTS = "IMAGENET1K_V1"
OPTIONS = (
    "data.camera_names=[top]",
    f"agent.vision_backbone.pretrained_backbone_weights={WEIGHTS}",
    "agent.vision_backbone.freeze_backbone=true",
    "agent.vision_backbone.stage_widths=[64,128,256,512]",
    "agent.vision_backbone.blocks_per_stage=[2,2,2,2]",
    "train.rollout_val_freq_epochs=0",
    "train.max_steps=1",
)


@pytest.mark.usefixtures("ray_cluster")
def test_workers_get_the_weights_that_the_driver_read(demonstrations: Path, tmp_path: Path) -> None:
    """The trunk is frozen, so it still has these weights at the end. No worker downloads any."""
    torch.manual_seed(7)
    weights = ResNetTrunk(pretrained_weights=WEIGHTS).state_dict()
    tensors = {f"vision_encoder.encoders.top.trunk.{key}": t for key, t in weights.items()}
    initial = InitialWeights(tensors, WEIGHTS)
    config, run_dir = tiny_config(demonstrations, *OPTIONS), RunDir(tmp_path / "größe 🤖")
    resources = allocate_run(config, ClusterSize(((float(LOGICAL_CPUS), float(LOGICAL_GPUS)),)))
    fit(prepare_run(config), run_dir, resources, initial=initial)
    agent, _ = load_agent(run_dir.checkpoint(1))
    assert agent.vision_encoder is not None
    trunk = agent.vision_encoder.encoders["top"].trunk
    torch.testing.assert_close(trunk.state_dict(), weights, rtol=0, atol=0)
