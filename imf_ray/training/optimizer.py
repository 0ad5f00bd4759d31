"""Optimizer and learning rate schedule."""

from __future__ import annotations

import math

import torch
from torch.optim.lr_scheduler import LambdaLR

from imf_ray.agents.base import VLAAgent
from imf_ray.schema import TrainConfig


def make_optimizer(agent: VLAAgent, config: TrainConfig) -> torch.optim.AdamW:
    """Make a fused AdamW optimizer for the agent's parameter groups."""
    groups = agent.get_optim_groups(config.weight_decay)
    betas = config.betas[0], config.betas[1]
    return torch.optim.AdamW(groups, lr=config.lr, betas=betas, fused=True)


def make_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig) -> LambdaLR:
    """Make a learning rate schedule: a linear warm-up, then a constant rate or a cosine.

    The cosine reaches `min_lr` at `max_steps`.
    """

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
