"""The base class of agents that learn a velocity (iMF and flow matching): options and inference.

Both agents move along the straight path z_t = (1 - t) x + t e from an action chunk x (t = 0) to
noise e (t = 1). The velocity of this path is v* = e - x.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.checks import check_choice
from imf_ray.agents.losses import VELOCITY_LOSS_TYPES

TimeSampler = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Function from uniforms (B, 3) in (0, 1) to times (r, t), each (B,), with 0 <= r <= t <= 1.

The function is pure, so that the times of a sample depend neither on its rank nor on its batch.
"""
PREDICTION_TYPES = ("velocity", "sample")
MIN_TIME = 0.05
"""Lower bound of the divisor t in the velocity (z_t - x) / t (arXiv 2511.13720)."""
LOGIT_NORMAL = -0.4, 1.0
"""Mean and standard deviation of a logit-normal time before the sigmoid (arXiv 2512.02012)."""


class VelocityAgent(VLAAgent):
    """`VLAAgent` that learns a velocity and integrates it from noise to actions.

    Args:
        loss_type: one of `VELOCITY_LOSS_TYPES`. The default, pseudo-Huber, bounds the gradient of
            an error. A few percent of iMF's batches have an extreme du/dt, and training with
            squared errors diverged on such batches.
        prediction_type: target of the head, one of `PREDICTION_TYPES`. "velocity": the velocity u.
            "sample": the action chunk x, from which u = (z_t - x) / t follows ("pixel MeanFlow",
            arXiv 2601.22158). One step from t = 1 then returns x itself, while a predicted velocity
            must reproduce the noise exactly for it to cancel.
        time_sampler: distribution of the training times, a key of `time_samplers`.
        kwargs: see `VLAAgent`.

    Raises:
        ValueError: an impossible combination of options.
    """

    time_samplers: ClassVar[Mapping[str, TimeSampler]]

    def __init__(
        self,
        *,
        loss_type: str = "pseudo_huber",
        prediction_type: str = "velocity",
        time_sampler: str = "logit_normal",
        **kwargs: Any,
    ) -> None:
        check_choice("loss_type", loss_type, VELOCITY_LOSS_TYPES)
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        check_choice("time_sampler", time_sampler, tuple(self.time_samplers))
        super().__init__(**kwargs)
        self.loss_type = loss_type
        self.prediction_type = prediction_type
        self.time_sampler = time_sampler

    @abstractmethod
    def _average_velocity(self, z_t: Tensor, r: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Compute the network's average velocity (B, T, D) from times t to r, each (B,)."""

    @abstractmethod
    def _sample_one_step(self, sample: Tensor, r: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Move a sample (B, T, D) from time t to the earlier time r, both scalars."""

    def _sample_actions(self, noise: Tensor, cond: Tensor) -> Tensor:
        """Integrate from t = 1 to t = 0 in `inference_steps` equal steps, one network call each."""
        times = torch.linspace(
            1, 0, self.inference_steps + 1, dtype=noise.dtype, device=noise.device
        )
        sample = noise
        for t, r in pairwise(times):
            sample = self._sample_one_step(sample, r, t, cond)
        return sample
