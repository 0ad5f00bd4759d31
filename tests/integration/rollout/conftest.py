"""Fixtures of the rollout tests: a small agent and its rollout."""

from __future__ import annotations

from pathlib import Path

import pytest

from imf_ray.agents.pretrained import save_agent
from imf_ray.rollout.actor_pool import RolloutSpec
from imf_ray.rollout.policy_spec import PolicySpec
from imf_ray.rollout.rollout_config import agent_rollout_config
from tests.helpers.configs import fresh_agent, tiny_config


@pytest.fixture(scope="session")
def agent_folder(demonstrations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an untrained agent."""
    folder, config = tmp_path_factory.mktemp("agent"), tiny_config(demonstrations)
    save_agent(folder, fresh_agent(config), config, ema=None)
    return folder


@pytest.fixture(scope="session")
def spec(demonstrations: Path, agent_folder: Path) -> RolloutSpec:
    """A rollout of the agent in episodes of 24 environment steps, that is, three chunks."""
    config = agent_rollout_config(
        tiny_config(demonstrations, "task.max_episode_steps=24"), noise_seed=1
    )
    return RolloutSpec(PolicySpec.parse(str(agent_folder)), config, envs_per_actor=4)
