"""Optimizer, learning-rate schedule and weight averaging."""

from __future__ import annotations

import copy
import math

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from imf_ray.agents.vla import VLAAgent
from imf_ray.schema import TrainConfig

EMA_POWER, EMA_MAX_DECAY = 0.75, 0.9999


def make_optimizer(agent: VLAAgent, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW over the agent's own parameter groups."""
    groups = agent.get_optim_groups(config.weight_decay)
    return torch.optim.AdamW(groups, lr=config.lr, betas=(config.betas[0], config.betas[1]))


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


class WeightAverage:
    """Exponential moving average of a module's floating-point state.

    The decay after `step` updates is 1 - (1 + step)^-0.75, at most 0.9999 (as in Diffusion
    Policy, arXiv 2303.04137). Other state is copied.
    """

    def __init__(self, module: nn.Module) -> None:
        self.state = copy.deepcopy(module.state_dict())

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move the average towards the module after update number `step` (from 0)."""
        decay = min(1.0 - (1.0 + step) ** -EMA_POWER, EMA_MAX_DECAY)
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1.0 - decay)
            else:
                self.state[name].copy_(value)
