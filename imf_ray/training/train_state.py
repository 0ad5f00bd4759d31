"""The training state of one worker, and the training step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import ray.train.torch
import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.pretrained import (
    EMA_WEIGHTS_FILE,
    WEIGHTS_FILE,
    load_weights,
    make_agent,
)
from imf_ray.aliases import DATA_STATE_KEYS, rename_keys
from imf_ray.checkpoint_dir import SavedCheckpoint
from imf_ray.data.sample_rng import crop_offsets, sample_noise_and_uniforms
from imf_ray.data.sampling import SamplePlan
from imf_ray.data.statistics import Statistics
from imf_ray.data.windows import Batch
from imf_ray.errors import UserError
from imf_ray.schema import Config
from imf_ray.training.acceleration import check_bf16_support, compile_loss
from imf_ray.training.checkpoint import load_train_state
from imf_ray.training.ema import EMA
from imf_ray.training.optimizer import make_optimizer, make_schedule
from imf_ray.training.run_dir import RunDir

DATA_STATE_KEY = "position"
"""Key of a checkpoint's train state: the position in the sample plan."""


class TrainState:
    """Agent, EMA, optimizer, schedule and step: everything that a checkpoint saves.

    Args:
        weights: see `make_agent`.
    """

    def __init__(
        self,
        config: Config,
        statistics: Statistics,
        device: torch.device,
        weights: Mapping[str, Tensor] | None = None,
    ) -> None:
        torch.manual_seed(config.train.seed)  # equal initial weights on every rank
        self._config = config
        self.agent: VLAAgent = make_agent(
            config.agent, config.task.action_space, statistics, weights
        )
        self.agent.to(device).train()
        if config.train.encoder_precision == "bf16":
            check_bf16_support(device)
            self.agent.bf16_encoders = True
        if config.train.compile:
            compile_loss(self.agent, device)
        self.device = device
        self.step = 0
        self.ema = EMA(self.agent) if config.train.ema else None
        self.optimizer = make_optimizer(self.agent, config.train)
        self.schedule = make_schedule(self.optimizer, config.train)
        self.module: nn.Module = self.agent

    def distribute(self) -> None:
        """Wrap the agent in DDP, so that `update` averages gradients over ranks."""
        self.module = ray.train.torch.prepare_model(self.agent, move_to_device=False)

    def restore(self, checkpoint: SavedCheckpoint, plan: SamplePlan) -> None:
        """Load a checkpoint. Training then continues exactly as without an interruption.

        Raises:
            UserError: the checkpoint was saved at a different position in the sample plan.
        """
        state = load_train_state(checkpoint.path, str(self.device))
        expected = plan.state_dict(checkpoint.step)
        # Checkpoints of early versions have no position.
        position = rename_keys(state.get(DATA_STATE_KEY, expected), DATA_STATE_KEYS)
        if position != expected:
            raise UserError(
                f"{checkpoint.path} was saved at data position {position}, but this run expects "
                f"{expected}. The run folder mixes files of two runs."
            )
        self.step = checkpoint.step
        self.agent.load_state_dict(load_weights(checkpoint.path / WEIGHTS_FILE))
        if self.ema is not None:
            self.ema.load(load_weights(checkpoint.path / EMA_WEIGHTS_FILE))
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])

    def save(
        self, run_dir: RunDir, metrics: Mapping[str, float], plan: SamplePlan
    ) -> SavedCheckpoint:
        """Write and upload a checkpoint of the current training step with these metrics."""
        state = {
            DATA_STATE_KEY: plan.state_dict(self.step),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        ema = None if self.ema is None else self.ema.state
        return run_dir.save_checkpoint(self.step, metrics, self.agent, self._config, ema, state)

    def update(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Run one training step; return the loss and the gradient norm before clipping."""
        train = self._config.train
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(split_microbatches(batch, train.gradient_accumulation_steps))
        grad_norm = nn.utils.clip_grad_norm_(self.agent.parameters(), train.grad_clip)
        self.optimizer.step()
        self.schedule.step()
        if self.ema is not None:
            self.ema.update(self.step)
        self.step += 1
        return loss, grad_norm

    def _backward(self, microbatches: Sequence[Mapping[str, Any]]) -> Tensor:
        """Accumulate the gradients of all microbatches and return the sum of their losses.

        Ranks synchronize gradients only in the last microbatch.
        """
        total = torch.zeros((), device=self.device)
        for number, microbatch in enumerate(microbatches, start=1):
            is_ddp = isinstance(self.module, DistributedDataParallel)
            skip_sync = number < len(microbatches) and is_ddp
            with self.module.no_sync() if skip_sync else nullcontext():  # type: ignore[operator]
                loss = self.module(microbatch)
                loss.backward()
            total += loss.detach()
        return total


def split_microbatches(batch: Mapping[str, Any], n: int) -> list[dict[str, Any]]:
    """Split a batch of tensors into `n` parts of about equal size along the first axis.

    Scalars are copied to every part. `valid_count` is such a scalar, so the losses of the parts add
    up to the loss of the batch.
    """
    microbatches: list[dict[str, Any]] = [{} for _ in range(n)]
    for key, value in batch.items():
        parts: Sequence[Any] = [value] * n
        if isinstance(value, Mapping):
            parts = split_microbatches(value, n)
        elif value.ndim > 0:
            parts = value.tensor_split(n)
        for microbatch, part in zip(microbatches, parts, strict=True):
            microbatch[key] = part
    return microbatches


def to_tensors(
    batch: Batch, config: Config, epoch: int, device: torch.device, world_size: int = 1
) -> dict[str, Any]:
    """Move a batch of windows to the device and add the random numbers of its samples.

    Images stay uint8. `valid_count` is the number of valid actions of the global batch divided by
    the world size. With it, averaged gradients equal those of a single process.
    """
    sample_ids = batch["sample_id"]
    assert isinstance(sample_ids, np.ndarray)
    seed, agent = config.train.seed, config.agent
    shape = (agent.pred_horizon, agent.action_dim)
    random = sample_noise_and_uniforms(seed, epoch, sample_ids, shape, agent.noise_samples_per_obs)
    if agent.vision_backbone.crop_size is not None:
        random["crop_offsets"] = crop_offsets(seed, epoch, sample_ids, len(agent.camera_names))
    tensors = _to_device({**batch, **random}, device)
    valid = (~tensors["action_is_pad"]).sum().float()
    if world_size > 1:
        torch.distributed.all_reduce(valid)
    tensors["valid_count"] = valid / world_size
    return tensors


def _to_device(arrays: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """Convert arrays, and mappings of arrays, to tensors on a device."""
    return {
        key: _to_device(value, device)
        if isinstance(value, Mapping)
        else torch.from_numpy(value).to(device, non_blocking=True)
        for key, value in arrays.items()
    }
