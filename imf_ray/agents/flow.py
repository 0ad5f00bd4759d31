"""The flow-matching agent. It learns the instantaneous velocity and integrates it by Euler steps.

Source: "Flow Matching for Generative Modeling" (arXiv 2210.02747). Path and direction of time are
those of iMF: data at t = 0, noise at t = 1.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from imf_ray.agents.losses import masked_loss
from imf_ray.agents.velocity import LOGIT_NORMAL, MIN_TIME, TimeSampler, VelocityAgent

BETA_ALPHA = 1.5
"""First parameter of `sample_t_beta`'s Beta(1.5, 1) (arXiv 2410.24164)."""


def sample_t_uniform(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return a uniform time as r = t."""
    return uniforms[:, 0], uniforms[:, 0]


def sample_t_logit_normal(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return a logit-normal time sigmoid(N(-0.4, 1)) as r = t.

    The family is that of arXiv 2403.03206, the parameters are iMF's (arXiv 2512.02012).
    """
    mean, std = LOGIT_NORMAL
    t = (torch.special.ndtri(uniforms[:, 0]) * std + mean).sigmoid()
    return t, t


def sample_t_beta(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return a time from Beta(1.5, 1), which favours noise over data, as r = t.

    The sampler of pi0 (arXiv 2410.24164), without its cut at t = 0.001.
    """
    t = uniforms[:, 0] ** (1 / BETA_ALPHA)
    return t, t


SINGLE_TIME_SAMPLERS: dict[str, TimeSampler] = {
    "uniform": sample_t_uniform,
    "logit_normal": sample_t_logit_normal,
    "beta": sample_t_beta,
}
"""Samplers of training times r = t, by the value of `agent.time_sampler`."""


class FlowVLAAgent(VelocityAgent):
    """`VLAAgent` with the flow-matching objective and Euler inference.

    The objective equals iMF's with r = t, where no time derivative is needed. The head gets the
    same time as r and as t.

    Args:
        inference_steps: number of Euler steps per chunk, one network call each.
        kwargs: see `VelocityAgent`.

    Raises:
        ValueError: an impossible combination of options.
    """

    time_samplers: ClassVar[Mapping[str, TimeSampler]] = SINGLE_TIME_SAMPLERS

    def __init__(self, *, inference_steps: int = 10, **kwargs: Any) -> None:
        super().__init__(inference_steps=inference_steps, **kwargs)

    def objective_loss(
        self,
        actions: Tensor,
        cond: Tensor,
        noise: Tensor,
        uniforms: Tensor,
        is_pad: Tensor,
        valid_count: Tensor | None = None,
    ) -> Tensor:
        """Compute the flow-matching loss (arXiv 2210.02747): rho(v(z_t, t) - v*), v* = e - x.

        z_t = (1 - t) x + t e, and rho is `loss_type`.
        """
        _, t = self.time_samplers[self.time_sampler](uniforms)
        noise_fraction = t[:, None, None]
        z_t = (1 - noise_fraction) * actions + noise_fraction * noise
        error = self._average_velocity(z_t, t, t, cond) - (noise - actions)
        return masked_loss(self.loss_type, error, is_pad, valid_count)

    def _average_velocity(self, z_t: Tensor, r: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Compute the velocity v(z_t, t), (B, T, D); r equals t."""
        prediction = self.head(z_t, r, t, cond)
        if self.prediction_type == "velocity":
            return prediction
        return (z_t - prediction) / t.clamp(min=MIN_TIME)[:, None, None]

    def _sample_one_step(self, sample: Tensor, r: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Take an Euler step from time t to r: z_r = z_t - (t - r) v(z_t, t)."""
        start = t.expand(len(sample))
        return sample - (t - r) * self._average_velocity(sample, start, start, cond)
