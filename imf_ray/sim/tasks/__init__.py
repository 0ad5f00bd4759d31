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
    stages: tuple[str, ...] = ()
    """Each stage in words, for people who look at results; empty if the task names none."""


TASKS = {
    "imf_ray/SimTransfer-v0": SimTask(
        expert="imf_ray.sim.tasks.transfer:TransferExpert",
        env="imf_ray.sim.tasks.transfer:SimTransferEnv",
        stages=(
            "the right gripper touches the cube",
            "the right gripper lifts the cube",
            "the left gripper touches the cube in the air",
            "the left gripper alone holds the cube in the air",
        ),
    ),
    "imf_ray/SimAirInsert-v0": SimTask(
        expert="imf_ray.sim.tasks.insert:InsertExpert",
        env="imf_ray.sim.tasks.insert:SimAirInsertEnv",
        stages=(
            "one gripper touches its object",
            "both grippers touch their objects",
            "both grippers hold their objects in the air",
            "an end of the bar is in the ring",
            "the bar goes through the ring",
        ),
    ),
    "gym_aloha/AlohaTransferCube-v0": SimTask(
        expert="imf_ray.sim.tasks.aloha:AlohaTransferExpert",
        stages=(
            "the right gripper touches the cube",
            "the right gripper lifts the cube",
            "the left gripper touches the cube",
            "the left gripper holds the cube off the table",
        ),
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
