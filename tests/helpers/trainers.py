"""Train states and batches without a data set."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from imf_ray.config import load_config
from imf_ray.data.statistics import Statistics, VectorStatistics
from imf_ray.schema import Config
from imf_ray.training.train_state import TrainState
from tests.helpers.configs import TINY_AGENT, TINY_TRAINING

BATCH_SIZE, IMAGE_SIZE, POSE_DIM = 8, 48, 7
MakeTrainer = Callable[..., TrainState]


def config_of(*overrides: str) -> Config:
    """Load the smallest configuration, without a data set."""
    return load_config(["agent=resnet_imf_attnres", *TINY_AGENT, *TINY_TRAINING, *overrides])


@pytest.fixture
def make_trainer() -> MakeTrainer:
    """Return a function that makes the train state of `config_of(*overrides)`."""

    def make(*overrides: str) -> TrainState:
        config = config_of(*overrides)
        statistics: Statistics = {
            "qpos": _vector_statistics(config.agent.state_dim),
            "action": _vector_statistics(config.agent.action_dim),
            "object_poses": {
                name: _vector_statistics(POSE_DIM) for name in config.agent.recorded_objects
            },
        }
        return TrainState(config, statistics, torch.device("cpu"))

    return make


def _vector_statistics(dim: int) -> VectorStatistics:
    return {"min": [-2.0] * dim, "max": [2.0] * dim, "mean": [0.0] * dim, "std": [1.0] * dim}


@pytest.fixture
def batch() -> dict[str, Any]:
    """A batch for agents with three cameras. Half of its samples end in padding."""
    generator = torch.Generator().manual_seed(1)
    is_pad = torch.zeros(BATCH_SIZE, 16, dtype=torch.bool)
    is_pad[::2, -3:] = True
    image_shape = (BATCH_SIZE, 2, IMAGE_SIZE, IMAGE_SIZE, 3)
    return {
        "images": {
            name: torch.randint(256, image_shape, dtype=torch.uint8, generator=generator)
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


def gradients(state: TrainState, part: str = "") -> torch.Tensor:
    """Return the gradients of an agent, or of the module named `part`, as one vector."""
    named = state.agent.named_parameters()
    grads = [p.grad for name, p in named if name.startswith(part) and p.grad is not None]
    return torch.cat([grad.flatten() for grad in grads])


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group with this process as its only rank."""
    address = f"file://{tmp_path / 'ranks'}"
    torch.distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


COMPILED_KINDS = {
    "imf": ("agent.camera_names=[]",),
    # Encoders are compiled as well; one camera is enough.
    "ddpm with images": ("agent.objective=ddpm", "agent.camera_names=[top]"),
}
"""Options of the agents whose compiled updates are tested, by test id."""


def check_compiled_updates(
    make_trainer: MakeTrainer, batch: dict[str, Any], kind: tuple[str, ...]
) -> None:
    """Check that three compiled updates equal eager ones. DDP wraps the compiled agent."""
    options = (*kind, "agent.head.n_layer=1", "train.gradient_accumulation_steps=2")
    eager = make_trainer(*options)
    compiled = make_trainer(*options, "train.compile=true")
    compiled.module = DistributedDataParallel(compiled.agent, bucket_cap_mb=0.005)
    for _ in range(3):
        expected, actual = eager.update(batch), compiled.update(batch)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)
        difference = gradients(compiled) - gradients(eager)
        assert difference.norm() <= 1e-4 * gradients(eager).norm()
