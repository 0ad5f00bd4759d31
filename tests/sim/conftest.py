"""Fixtures of the simulation tests."""

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium
import pytest

from imf_ray.sim.transfer import SimTransferEnv

ENV_ID = "imf_ray/SimTransfer-v0"
EPISODE_STEPS = 400

MakeEnv = Callable[..., SimTransferEnv]


@pytest.fixture
def make_env() -> Iterator[MakeEnv]:
    """Makes environments without pictures by default, and closes them after the test."""
    made: list[SimTransferEnv] = []

    def make(**options: Any) -> SimTransferEnv:
        made.append(SimTransferEnv(**{"render_images": False, **options}))
        return made[-1]

    yield make
    for env in made:
        env.close()


@pytest.fixture(scope="session")
def registered_id() -> str:
    """The environment's id in gymnasium's registry."""
    if ENV_ID not in gymnasium.registry:
        gymnasium.register(
            ENV_ID,
            entry_point="imf_ray.sim.transfer:SimTransferEnv",
            max_episode_steps=EPISODE_STEPS,
        )
    return ENV_ID
