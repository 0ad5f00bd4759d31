"""Small configurations and agents."""

from __future__ import annotations

from pathlib import Path

import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.pretrained import make_agent
from imf_ray.config import load_config
from imf_ray.data.episodes import EpisodeFields
from imf_ray.data.index import build_index
from imf_ray.data.statistics import compute_statistics
from imf_ray.schema import Config
from testing_support.configs import TINY_AGENT

LOGICAL_CPUS, LOGICAL_GPUS = 4, 2
"""Logical resources of the Ray cluster that tests share."""
DEMONSTRATIONS = 3
"""Number of episodes of the data set that tests share."""
TINY_TRAINING = (
    "train.batch_size=8",
    "train.max_steps=4",
    "train.warmup_steps=1",
    "train.log_freq=1",
    "train.num_workers=1",
    "train.rollout_num_episodes=2",
    "train.val_split=0.34",
    "task.image_size=48",
    "task.max_episode_steps=400",
    "cluster.include_dashboard=false",
)


def tiny_config(dataset_dir: Path | str, *overrides: str) -> Config:
    """Load the smallest realistic configuration: three cameras, a ResNet trunk, an AttnRes head."""
    return load_config(
        [
            "agent=resnet_imf_attnres_multitoken",
            *TINY_AGENT,
            *TINY_TRAINING,
            f"data.dataset_dir={dataset_dir}",
            *overrides,
        ]
    )


def fresh_agent(config: Config, seed: int = 0) -> VLAAgent:
    """Make an agent with untrained weights and the normalization statistics of its data."""
    index = build_index(config)
    torch.manual_seed(seed)
    selection = EpisodeFields(objects=config.agent.recorded_objects)
    stats = compute_statistics(index.episodes, selection)
    return make_agent(config.agent, config.task.action_space, stats)
