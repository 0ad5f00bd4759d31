"""Which tasks have a scripted expert."""

from collections.abc import Callable
from typing import Any

from imf_ray.sim.aloha_expert import AlohaTransferExpert
from imf_ray.sim.base import ScriptedExpert, SimEnv
from imf_ray.sim.insert_expert import InsertExpert
from imf_ray.sim.transfer_expert import TransferExpert

EXPERTS: dict[str, Callable[[Any], ScriptedExpert]] = {
    "imf_ray/SimTransfer-v0": TransferExpert,
    "imf_ray/SimAirInsert-v0": InsertExpert,
    "gym_aloha/AlohaTransferCube-v0": AlohaTransferExpert,
}
"""What makes the expert of a world, by environment id."""


def make_expert(env_id: str, world: SimEnv) -> ScriptedExpert:
    """The scripted expert of `env_id`, made for `world`, an unwrapped environment of that id.

    Raises ValueError when the task has none.
    """
    if env_id not in EXPERTS:
        raise ValueError(
            f"{env_id} has no scripted expert; these environments have one: {', '.join(EXPERTS)}"
        )
    return EXPERTS[env_id](world)
