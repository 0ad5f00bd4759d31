"""The exponential moving average (EMA) of weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

EMA_POWER, EMA_MAX_DECAY = 0.75, 0.9999
"""Exponent and maximum of the decay, see `EMA`."""


class EMA:
    """Exponential moving average of a module's floating-point state.

    The decay after `step` updates is 1 - (1 + step)^-0.75, at most 0.9999 (as in Diffusion
    Policy, arXiv 2303.04137). Integer state is copied.

    Args:
        module: the module to average. It must stay on its device, because its tensors are looked up
            only once: a look-up takes as long as an update.
    """

    def __init__(self, module: nn.Module) -> None:
        weights = module.state_dict()  # shares the module's memory
        self.state = {name: value.clone() for name, value in weights.items()}
        averaged_names = [name for name, value in weights.items() if value.is_floating_point()]
        self._averages = [self.state[name] for name in averaged_names]
        self._values = [weights[name] for name in averaged_names]
        copied_names = weights.keys() - averaged_names
        self._copies = [(self.state[name], weights[name]) for name in copied_names]

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load the averages of a checkpoint."""
        for name, value in self.state.items():
            value.copy_(state[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the averages after training step `step`, counted from 0."""
        decay = min(1.0 - (1.0 + step) ** -EMA_POWER, EMA_MAX_DECAY)
        torch._foreach_lerp_(self._averages, self._values, 1.0 - decay)
        for copy, value in self._copies:
            copy.copy_(value)
