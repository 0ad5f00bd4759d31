"""Optimizer, learning-rate schedule and weight averaging."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from imf_ray.agents.base import VLAAgent
from imf_ray.schema import TrainConfig

EMA_POWER, EMA_MAX_DECAY = 0.75, 0.9999


def make_optimizer(agent: VLAAgent, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the agent's own parameter groups, in one kernel instead of one a tensor."""
    groups = agent.get_optim_groups(config.weight_decay)
    betas = config.betas[0], config.betas[1]
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig) -> LambdaLR:
    """Linear warm-up, then constant or a cosine that reaches `min_lr` at `max_steps`."""

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
    Policy, arXiv 2303.04137). Other state is copied.

    Args:
        module: on its device to stay; its tensors are looked up once, as that takes as long as
            averaging them.
    """

    def __init__(self, module: nn.Module) -> None:
        live = module.state_dict()  # shares the module's memory
        self.state = {name: value.clone() for name, value in live.items()}
        averaged = [name for name, value in live.items() if value.is_floating_point()]
        self._averages = [self.state[name] for name in averaged]
        self._values = [live[name] for name in averaged]
        self._copies = [(self.state[name], live[name]) for name in live.keys() - averaged]

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over the averages of a checkpoint."""
        for name, value in self.state.items():
            value.copy_(state[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the average towards the module after update number `step` (from 0)."""
        decay = min(1.0 - (1.0 + step) ** -EMA_POWER, EMA_MAX_DECAY)
        torch._foreach_lerp_(self._averages, self._values, 1.0 - decay)
        for copy, value in self._copies:
            copy.copy_(value)
