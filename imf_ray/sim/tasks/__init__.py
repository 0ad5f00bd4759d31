"""Registry of simulated tasks. Each module of this package contains the env and expert of a task.

The registry refers to classes by entry points, so that importing it does not import MuJoCo.
"""

from typing import NamedTuple

import gymnasium


class SimTask(NamedTuple):
    """Entry points (`module:Class`) of a task."""

    expert: str
    """The scripted expert. Its constructor takes the env."""
    env: str | None = None
    """The env to register with gymnasium, or None if another package registers it."""


TASKS = {
    "imf_ray/SimTransfer-v0": SimTask(
        expert="imf_ray.sim.tasks.transfer:TransferExpert",
        env="imf_ray.sim.tasks.transfer:SimTransferEnv",
    ),
    "imf_ray/SimAirInsert-v0": SimTask(
        expert="imf_ray.sim.tasks.insert:InsertExpert",
        env="imf_ray.sim.tasks.insert:SimAirInsertEnv",
    ),
    "gym_aloha/AlohaTransferCube-v0": SimTask(
        expert="imf_ray.sim.tasks.aloha:AlohaTransferExpert",
    ),
}
"""All tasks with a scripted expert, by environment id."""

MAX_EPISODE_STEPS = 400
"""Time limit of the package's own envs, in environment steps."""


def register_envs() -> None:
    """Register the package's own envs with gymnasium."""
    for env_id, task in TASKS.items():
        if task.env is not None:
            gymnasium.register(env_id, task.env, max_episode_steps=MAX_EPISODE_STEPS)
