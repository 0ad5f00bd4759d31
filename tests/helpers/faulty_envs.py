"""The transfer task with faults at certain seeds.

`task.env_id=tests.helpers.faulty_envs:tests/FaultyTransfer-v0` imports this module in every process
that makes the env, such as a rollout actor.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import gymnasium
import numpy as np

from imf_ray.sim.tasks.transfer import SimTransferEnv

ENV_ID = "tests.helpers.faulty_envs:tests/FaultyTransfer-v0"
MADE_IN_DRIVER = "tests.helpers.faulty_envs:tests/MadeInDriver-v0"
is_driver = False
"""Set to True in the process in which the env `MADE_IN_DRIVER` can be made."""
RAISES, RETURNS_NAN, REWARDS_NAN, DIES, HANGS = range(9000, 9005)
"""Seeds of the episodes with a fault."""
FAULTY_STEP = 3


class FaultyTransferEnv(SimTransferEnv):
    """A task that fails at environment step `FAULTY_STEP` for each of the seeds above."""

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self._seed, self._steps = seed, 0
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> Any:
        self._steps += 1
        observation, reward, terminated, truncated, info = super().step(action)
        if self._steps == FAULTY_STEP:
            if self._seed == RAISES:
                raise ArithmeticError("the simulation diverged")
            if self._seed == RETURNS_NAN:
                observation["qpos"] = np.full_like(observation["qpos"], np.nan)
            if self._seed == REWARDS_NAN:
                reward = float("nan")
            if self._seed == DIES:
                os.kill(os.getpid(), signal.SIGSEGV)  # like an invalid memory access in MuJoCo
            if self._seed == HANGS:
                time.sleep(10_000)
        return observation, reward, terminated, truncated, info


gymnasium.register(id="tests/FaultyTransfer-v0", entry_point=FaultyTransferEnv)


def _make_in_driver(**kwargs: Any) -> gymnasium.Env:
    if not is_driver:
        raise OSError("the scene is missing")
    return SimTransferEnv(**kwargs)


gymnasium.register(id="tests/MadeInDriver-v0", entry_point=_make_in_driver)
