"""Trainers and batches without a data set."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from imf_ray.config import load_config
from imf_ray.schema import Config
from imf_ray.training.train_state import TrainState
from tests.helpers.configs import TINY_AGENT, TINY_TRAINING

BATCH_SIZE, IMAGE_SIZE = 8, 48
MakeTrainer = Callable[..., TrainState]


def config_of(*overrides: str) -> Config:
    """The smallest configuration, without data."""
    return load_config(["agent=resnet_imf_attnres", *TINY_AGENT, *TINY_TRAINING, *overrides])


@pytest.fixture
def make_trainer() -> MakeTrainer:
    """Makes trainers of `config_of(*overrides)` whose statistics are made up."""

    def make(*overrides: str) -> TrainState:
        config = config_of(*overrides)
        one = {
            name: {"min": [-2.0] * width, "max": [2.0] * width, "mean": [0.0] * width}
            | {"std": [1.0] * width}
            for name, width in (
                ("qpos", config.agent.state_dim + 7 * len(config.agent.recorded_objects)),
                ("action", config.agent.action_dim),
            )
        }
        return TrainState(config, one, torch.device("cpu"))

    return make


@pytest.fixture
def batch() -> dict[str, Any]:
    """A batch for agents with the three cameras; half of its samples end in padding."""
    generator = torch.Generator().manual_seed(1)
    is_pad = torch.zeros(BATCH_SIZE, 16, dtype=torch.bool)
    is_pad[::2, -3:] = True
    pictures = (BATCH_SIZE, 2, IMAGE_SIZE, IMAGE_SIZE, 3)
    return {
        "images": {
            name: torch.randint(256, pictures, dtype=torch.uint8, generator=generator)
            for name in ("r_vis", "top", "front")
        },
        "qpos": torch.randn(BATCH_SIZE, 2, 16, generator=generator),
        "action": torch.randn(BATCH_SIZE, 16, 16, generator=generator),
        "action_is_pad": is_pad,
        "noise": torch.randn(BATCH_SIZE, 16, 16, generator=generator),
        "time_uniforms": torch.rand(BATCH_SIZE, 3, generator=generator),
        "sample_id": torch.arange(BATCH_SIZE),
        "valid_count": (~is_pad).sum().float(),
    }


def gradients(trainer: TrainState, part: str = "") -> torch.Tensor:
    """The gradients of a trainer's agent, or of a part of it, one after the other."""
    named = trainer.agent.named_parameters()
    found = [p for name, p in named if name.startswith(part) and p.grad is not None]
    return torch.cat([p.grad.flatten() for p in found])
