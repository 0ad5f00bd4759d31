"""The improved-MeanFlow agent: learns an average velocity, acts with one network call per chunk.

Source: "Improved Mean Flows" (arXiv 2512.02012). Time runs from data (t = 0) to noise (t = 1):
z_t = (1 - t) x + t e, with the velocity v* = e - x.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from imf_ray.agents.vla import VLAAgent, check_choice

_LOGIT_NORMAL_MEAN, _LOGIT_NORMAL_STD = -0.4, 1.0


def sample_times_uniform(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Uniforms (B, 3) -> (r, t), each (B,): the first two, sorted. P(t - r > 0.8) is 4 %."""
    return _sort_pairs(uniforms)


def sample_times_logit_normal(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Uniforms (B, 3) -> (r, t), each (B,): the sampler of the iMF paper (arXiv 2512.02012).

    The first two become sigmoid(N(-0.4, 1)) and are sorted; where the third is below one half,
    r := t. P(t - r > 0.8) is 0.05 %.
    """
    normal = torch.special.ndtri(uniforms[:, :2]) * _LOGIT_NORMAL_STD + _LOGIT_NORMAL_MEAN
    r, t = _sort_pairs(normal.sigmoid())
    return torch.where(uniforms[:, 2] < 0.5, t, r), t


def _sort_pairs(pairs: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller and the larger of the first two columns, contiguous for compiled JVPs."""
    first, second = pairs[:, 0], pairs[:, 1]
    return torch.minimum(first, second), torch.maximum(first, second)


def squared_error(error: Tensor) -> Tensor:
    """Elementwise error^2."""
    return error.square()


def pseudo_huber(error: Tensor) -> Tensor:
    """Elementwise sqrt(1 + error^2) - 1: quadratic below delta = 1, linear far above it."""
    return (1 + error.square()).sqrt() - 1


def masked_mean(losses: Tensor, is_pad: Tensor, valid_count: Tensor | None = None) -> Tensor:
    """Mean of losses (B, T, D) over the steps (B, T) that are not padding; 0 if all are.

    valid_count replaces the number of valid steps in the denominator (see `VLAAgent.compute_loss`).
    """
    valid = ~is_pad
    count = valid.sum() if valid_count is None else valid_count
    count = count.where(count > 0, 1).to(losses.dtype)
    return losses.masked_fill(is_pad[..., None], 0.0).sum() / (count * losses.shape[-1])


TIME_SAMPLERS: dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]] = {
    "uniform": sample_times_uniform,
    "logit_normal": sample_times_logit_normal,
}
LOSS_TYPES: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": squared_error,
    "pseudo_huber": pseudo_huber,
}


class IMFVLAAgent(VLAAgent):
    """`VLAAgent` with the iMF objective and one-step inference.

    The training batch may hold its random numbers: "noise" (B, pred_horizon, action_dim), standard
    normal, and "time_uniforms" (B, 3) in (0, 1). Without them torch's generator is used.

    Args:
        loss_type: one of `LOSS_TYPES`. The default bounds the gradient of an error: a few batches
            in a hundred have an extreme du/dt, and the squared error has been seen to diverge on
            them.
        time_sampler: one of `TIME_SAMPLERS`. The default trains the corner (r = 0, t = 1) that
            one-step inference uses some eighty times as often as the logit-normal one.
        kwargs: see `VLAAgent`.
    """

    def __init__(
        self, *, loss_type: str = "pseudo_huber", time_sampler: str = "uniform", **kwargs: Any
    ) -> None:
        check_choice("loss_type", loss_type, tuple(LOSS_TYPES))
        check_choice("time_sampler", time_sampler, tuple(TIME_SAMPLERS))
        super().__init__(**kwargs)
        self.loss_type = loss_type
        self.time_sampler = time_sampler
        self._head_has_dropout = any(
            isinstance(module, nn.Dropout) and module.p > 0 for module in self.head.modules()
        )

    def _loss_from_condition(
        self, actions: Tensor, cond: Tensor, batch: Mapping[str, Any]
    ) -> Tensor:
        noise = batch.get("noise")
        if noise is None:
            noise = torch.randn_like(actions)
        uniforms = batch.get("time_uniforms")
        if uniforms is None:
            uniforms = actions.new_empty(actions.shape[0], 3).uniform_()
        r, t = TIME_SAMPLERS[self.time_sampler](uniforms)
        error = self._velocity_error(actions, noise, r, t, cond)
        losses = LOSS_TYPES[self.loss_type](error)
        return masked_mean(losses, batch["action_is_pad"], batch.get("valid_count"))

    def _sample_actions(self, noise: Tensor, cond: Tensor) -> Tensor:
        """Walks from t = 1 to t = 0 in `inference_steps` equal steps, one network call each."""
        times = torch.linspace(
            1, 0, self.inference_steps + 1, dtype=noise.dtype, device=noise.device
        )
        sample = noise
        for t, r in pairwise(times):
            sample = self._sample_one_step(sample, r, t, cond)
        return sample

    def _sample_one_step(self, sample: Tensor, r: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Moves a sample from time t to the earlier time r: z_r = z_t - (t - r) u(z_t, r, t)."""
        batch_size = sample.shape[0]
        r, t = r.expand(batch_size), t.expand(batch_size)
        return sample - self._broadcast_batch_time(t - r, sample) * self.head(sample, r, t, cond)

    def _velocity_error(
        self, actions: Tensor, noise: Tensor, r: Tensor, t: Tensor, cond: Tensor
    ) -> Tensor:
        """V - v*: the error (B, T, D) of the compound velocity at z_t = (1 - t) x + t e."""
        fraction = self._broadcast_batch_time(t, actions)
        z_t = (1 - fraction) * actions + fraction * noise
        u, du_dt = self._compute_u_and_du_dt(z_t, r, t, cond)
        return self._compound_velocity(u, du_dt, r, t) - (noise - actions)

    def _compute_u_and_du_dt(
        self, z_t: Tensor, r: Tensor, t: Tensor, cond: Tensor
    ) -> tuple[Tensor, Tensor]:
        """u(z_t, r, t) and its total derivative by t, each (B, T, D); only u has a gradient.

        du/dt is the Jacobian-vector product of the network with (v, 0, 1), where v = u(z_t, t, t)
        is the network's own instantaneous velocity.
        """
        # v is this very network's direction, so both passes must draw the same dropout masks.
        with self._replayed_dropout(z_t.device), torch.no_grad():
            v = self.head(z_t, t, t, cond)
        u, du_dt = torch.func.jvp(  # type: ignore[misc]
            lambda z, start, end: self.head(z, start, end, cond),
            (z_t, r, t),
            (v, torch.zeros_like(r), torch.ones_like(t)),
        )
        return u, du_dt.detach()

    def _replayed_dropout(self, device: torch.device) -> AbstractContextManager[None]:
        """Restores the random state on leaving: what follows draws the same dropout masks."""
        if not (self._head_has_dropout and self.training):
            return nullcontext()  # torch.compile cannot trace a fork of the random state
        return torch.random.fork_rng([device] if device.type == "cuda" else [])

    @classmethod
    def _compound_velocity(cls, u: Tensor, du_dt: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """V = u + (t - r) sg(du/dt), the estimate of the instantaneous velocity."""
        return u + cls._broadcast_batch_time(t - r, u) * du_dt.detach()

    @staticmethod
    def _broadcast_batch_time(time: Tensor, like: Tensor) -> Tensor:
        """Times (B,) -> (B, 1, ..., 1) with as many dimensions as `like`."""
        return time.view(-1, *[1] * (like.ndim - 1))
