"""A small agent to judge."""

from __future__ import annotations

from pathlib import Path

import pytest

from imf_ray.agents.pretrained import save_agent
from imf_ray.rollout.actor_pool import RolloutSpec
from imf_ray.rollout.rollout_config import agent_rollout_config
from tests.helpers.configs import fresh_agent, tiny_config


@pytest.fixture(scope="session")
def agent_folder(demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An agent with fresh weights, trained on nothing, on disk."""
    folder, config = tmp_path_factory.mktemp("agent"), tiny_config(demonstrations)
    save_agent(folder, fresh_agent(config), config, ema=None)
    return folder


@pytest.fixture(scope="session")
def job(demonstrations: Path, agent_folder: Path) -> RolloutSpec:
    """The agent in episodes of 24 steps, that is, of three chunks."""
    config = tiny_config(demonstrations, "task.max_episode_steps=24")
    return RolloutSpec(str(agent_folder), agent_rollout_config(config, noise_seed=1), worlds=4)
