"""The registry of training objectives.

It does not import torch, because the configuration schema imports it.

To add an objective, write a `VLAAgent` subclass in a module of this package and add it to
`OBJECTIVES`.
"""

import importlib
from typing import Any, NamedTuple


class Objective(NamedTuple):
    """The agent class of an objective, and the options that only this class has."""

    entry_point: str
    """`module:Class` of a subclass of `imf_ray.agents.base.VLAAgent`."""
    options: tuple[str, ...]
    """Options of the `agent` section that its constructor takes in addition to `VLAAgent`'s."""
    section: str | None = None
    """Subsection of `agent` whose options its constructor also takes."""
    needs_time_interval: bool = True
    """True if the head must take two times (r, t) instead of one timestep."""

    def load(self) -> Any:
        """Import and return the agent class."""
        module, _, name = self.entry_point.partition(":")
        return getattr(importlib.import_module(module), name)


OBJECTIVES = {
    "imf": Objective(
        "imf_ray.agents.imf:IMFVLAAgent",
        options=("loss_type", "prediction_type", "time_sampler", "aux_v_head"),
    ),
    "flow": Objective(
        "imf_ray.agents.flow:FlowVLAAgent",
        options=("loss_type", "prediction_type", "time_sampler"),
    ),
    "ddpm": Objective(
        "imf_ray.agents.ddpm:DDPMVLAAgent",
        options=("loss_type",),
        section="ddpm",
        needs_time_interval=False,
    ),
}
"""All objectives. The keys are the values of `agent.objective`."""
