"""Distributed training of one-step robot policies on Ray.

Importing the package registers its simulated tasks with gymnasium by name and does nothing else.
"""

import gymnasium

__version__ = "0.2.0"

gymnasium.register(
    id="imf_ray/SimTransfer-v0",
    entry_point="imf_ray.sim.transfer:SimTransferEnv",
    max_episode_steps=400,
)
gymnasium.register(
    id="imf_ray/SimAirInsert-v0",
    entry_point="imf_ray.sim.insert:SimAirInsertEnv",
    max_episode_steps=400,
)
