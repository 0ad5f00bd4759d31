"""Optimizer, learning rate schedule and the exponential moving average of weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from imf_ray.agents.base import VLAAgent
from imf_ray.schema import TrainConfig

EMA_POWER, EMA_MAX_DECAY = 0.75, 0.9999
"""Exponent and largest decay of the EMA, see `EMA`."""


def make_optimizer(agent: VLAAgent, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW over the agent's own parameter groups."""
    groups = agent.get_optim_groups(config.weight_decay)
    betas = config.betas[0], config.betas[1]
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig) -> LambdaLR:
    """Linear warm-up, then a constant rate or a cosine that reaches `min_lr` at `max_steps`."""

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.scheduler_type == "constant":
            return 1.0
        span = max(config.max_steps - config.warmup_steps, 1)
        progress = min((step - config.warmup_steps) / span, 1.0)
        floor = config.min_lr / config.lr
        return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, factor)


class EMA:
    """Exponential moving average of a module's floating-point state.

    The decay after `step` updates is 1 - (1 + step)^-0.75, at most 0.9999 (as in Diffusion
    Policy, arXiv 2303.04137). Integer state is copied.

    Args:
        module: must stay on its device: its tensors are looked up only once, since a look-up takes
            as long as an update.
    """

    def __init__(self, module: nn.Module) -> None:
        weights = module.state_dict()  # shares the module's memory
        self.state = {name: value.clone() for name, value in weights.items()}
        averaged = [name for name, value in weights.items() if value.is_floating_point()]
        self._averages = [self.state[name] for name in averaged]
        self._values = [weights[name] for name in averaged]
        self._copies = [(self.state[name], weights[name]) for name in weights.keys() - averaged]

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Load the averages of a checkpoint."""
        for name, value in self.state.items():
            value.copy_(state[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after update number `step`, counted from 0."""
        decay = min(1.0 - (1.0 + step) ** -EMA_POWER, EMA_MAX_DECAY)
        torch._foreach_lerp_(self._averages, self._values, 1.0 - decay)
        for copy, value in self._copies:
            copy.copy_(value)
