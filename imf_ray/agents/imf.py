"""The improved-MeanFlow (iMF) agent. It learns an average velocity and samples in one network call.

Source: "Improved Mean Flows" (arXiv 2512.02012). Time runs from data (t = 0) to noise (t = 1).
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from imf_ray.agents.losses import masked_loss
from imf_ray.agents.velocity import LOGIT_NORMAL, MIN_TIME, TimeSampler, VelocityAgent
from imf_ray.models.attnres import RMSNorm
from imf_ray.models.imf_transformer import IMFTransformer1D

LOGIT_NORMAL_P_EQUAL = 0.5
"""Probability of r = t in `sample_times_logit_normal`."""
MEANFLOW_V1_R, MEANFLOW_V1_T = (-4.0, 1.6), (-0.6, 1.6)
"""Mean and standard deviation of r and t before the sigmoid in `sample_times_meanflow_v1`."""
ENDPOINT_MIX_P_EQUAL, ENDPOINT_MIX_P_R_ZERO, ENDPOINT_MIX_P_ENDPOINT = 0.25, 0.25, 0.25
"""Probabilities of r = t, of r = 0 with t < 1, and of r = 0, t = 1 in
`sample_times_endpoint_mix`."""


def sample_times_uniform(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return two uniform times, sorted. P(t - r > 0.8) is 4 %, P(r = t) is 0."""
    first, second, _ = uniforms.unbind(dim=1)
    return torch.minimum(first, second), torch.maximum(first, second)


def sample_times_logit_normal(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return two logit-normal times, sorted, as in the iMF paper (arXiv 2512.02012).

    Each time is sigmoid(N(-0.4, 1)). For half of the samples r is then set to t. P(t - r > 0.8) is
    0.05 %, P(r = t) is 50 %.
    """
    mean, std = LOGIT_NORMAL
    first = (torch.special.ndtri(uniforms[:, 0]) * std + mean).sigmoid()
    second = (torch.special.ndtri(uniforms[:, 1]) * std + mean).sigmoid()
    r, t = torch.minimum(first, second), torch.maximum(first, second)
    return torch.where(uniforms[:, 2] < LOGIT_NORMAL_P_EQUAL, t, r), t


def sample_times_meanflow_v1(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return times of two logit-normal distributions, sorted, as in MeanFlow (arXiv 2505.13447).

    The distributions are sigmoid(N(-4, 1.6^2)) and sigmoid(N(-0.6, 1.6^2)), as in the better of
    that paper's runs on CIFAR. P(t - r > 0.8) is 8.1 %, P(r = t) is 0.
    """
    (mean_r, std_r), (mean_t, std_t) = MEANFLOW_V1_R, MEANFLOW_V1_T
    first = (torch.special.ndtri(uniforms[:, 0]) * std_r + mean_r).sigmoid()
    second = (torch.special.ndtri(uniforms[:, 1]) * std_t + mean_t).sigmoid()
    return torch.minimum(first, second), torch.maximum(first, second)


def sample_times_endpoint_mix(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return times from a mixture for one-step inference, which uses the interval r = 0, t = 1.

    The third uniform picks one of four equally likely cases:

    * r = t, uniform. This case trains the instantaneous velocity, along which du/dt is computed.
    * r = 0, t uniform. At r = 0 the compound velocity V (see `objective_loss`) is
      d/dt [t u(z_t, 0, t)] along a path of the flow. The error of one step is therefore the mean
      over t of V's errors, and its square is at most the mean of their squares.
    * r = 0, t = 1: the interval of one-step inference.
    * two sorted uniforms: all other intervals.

    P(t - r > 0.8) is 31 %, P(r = t) is 25 %.
    """
    first, second, choice = uniforms.unbind(dim=1)
    r, t = torch.minimum(first, second), torch.maximum(first, second)
    equal = choice < ENDPOINT_MIX_P_EQUAL
    equal_or_r_zero = choice < ENDPOINT_MIX_P_EQUAL + ENDPOINT_MIX_P_R_ZERO
    not_two_uniforms = (
        choice < ENDPOINT_MIX_P_EQUAL + ENDPOINT_MIX_P_R_ZERO + ENDPOINT_MIX_P_ENDPOINT
    )
    r = torch.where(equal, first, torch.where(not_two_uniforms, 0.0, r))
    return r, torch.where(equal_or_r_zero, first, torch.where(not_two_uniforms, 1.0, t))


TIME_SAMPLERS: dict[str, TimeSampler] = {
    "uniform": sample_times_uniform,
    "logit_normal": sample_times_logit_normal,
    "meanflow_v1": sample_times_meanflow_v1,
    "endpoint_mix": sample_times_endpoint_mix,
}
"""Samplers of training intervals (r, t), by the value of `agent.time_sampler`."""


class IMFVLAAgent(VelocityAgent):
    """`VLAAgent` with the iMF objective and one-step inference.

    Args:
        aux_v_head: add a second output to the network and train it, with the same loss, to be the
            instantaneous velocity v(z_t, t), along which du/dt is computed. Inference does not use
            it. Without it, v is u(z_t, t, t). The paper describes both forms.
        kwargs: see `VelocityAgent`. Of four time samplers, the default was the best with one
            inference step (docs/results/time_samplers.md).

    Raises:
        ValueError: an impossible combination of options.
    """

    time_samplers: ClassVar[Mapping[str, TimeSampler]] = TIME_SAMPLERS

    def __init__(self, *, aux_v_head: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.aux_v_head = self._make_aux_v_head() if aux_v_head else None
        self._head_has_dropout = any(
            isinstance(module, nn.Dropout) and module.p > 0 for module in self.head.modules()
        )

    def objective_loss(
        self,
        actions: Tensor,
        cond: Tensor,
        noise: Tensor,
        uniforms: Tensor,
        is_pad: Tensor,
        valid_count: Tensor | None = None,
    ) -> Tensor:
        """Compute the iMF loss (arXiv 2512.02012), rho(V - v*).

        V = u + (t - r) sg(du/dt), u = u(z_t, r, t), z_t = (1 - t) x + t e, and v* = e - x, with
        actions x and noise e. rho is `loss_type`, and sg stops the gradient. du/dt is the
        derivative along (v, 0, 1) with v = u(z_t, t, t). With an auxiliary head, that head predicts
        v, and rho(v - v*) is added.
        """
        r, t = self.time_samplers[self.time_sampler](uniforms)
        noise_fraction = t[:, None, None]
        z_t = (1 - noise_fraction) * actions + noise_fraction * noise
        v_target = noise - actions
        v = None if self.aux_v_head is None else self._aux_velocity(z_t, t, cond)
        u, du_dt = self._compute_u_and_du_dt(z_t, r, t, cond, v)
        error = self._compound_velocity(u, du_dt, r, t) - v_target
        loss = masked_loss(self.loss_type, error, is_pad, valid_count)
        if v is None:
            return loss
        return loss + masked_loss(self.loss_type, v - v_target, is_pad, valid_count)

    def _sample_one_step(self, sample: Tensor, r: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Move a sample from time t to the earlier time r: z_r = z_t - (t - r) u(z_t, r, t)."""
        r, t = r.expand(len(sample)), t.expand(len(sample))
        step = self._broadcast_batch_time(t - r, sample)
        return sample - step * self._average_velocity(sample, r, t, cond)

    def _average_velocity(
        self,
        z_t: Tensor,
        r: Tensor,
        t: Tensor,
        cond: Tensor,
        network: Callable[..., Tensor] | None = None,
    ) -> Tensor:
        """Compute the average velocity u(z_t, r, t) from t to r, (B, T, D).

        `network` replaces the head if given.
        """
        prediction = (self.head if network is None else network)(z_t, r, t, cond)
        if self.prediction_type == "velocity":
            return prediction
        return (z_t - prediction) / t.clamp(min=MIN_TIME)[:, None, None]

    def _aux_velocity(self, z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """Compute the auxiliary head's instantaneous velocity v(z_t, t), (B, T, D)."""

        def network(*inputs: Tensor) -> Tensor:
            features = cast(IMFTransformer1D, self.head).features(*inputs)
            return cast(nn.Module, self.aux_v_head)(features)

        with self._same_dropout_masks(z_t) if self._head_has_dropout else nullcontext():
            return self._average_velocity(z_t, t, t, cond, network)

    def _compute_u_and_du_dt(
        self, z_t: Tensor, r: Tensor, t: Tensor, cond: Tensor, v: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Compute u(z_t, r, t) and its total derivative by t, each (B, T, D).

        Only u has a gradient. du/dt is the Jacobian-vector product of the network with (v, 0, 1).
        v (B, T, D) is the auxiliary head's instantaneous velocity. None computes v as u(z_t, t, t).
        """
        if v is None:
            masks = self._same_dropout_masks(z_t) if self._head_has_dropout else nullcontext()
            with torch.no_grad(), masks:
                v = self._average_velocity(z_t, t, t, cond)
        u, du_dt = torch.func.jvp(  # type: ignore[misc]
            partial(self._average_velocity, cond=cond),
            (z_t, r, t),
            (v.detach(), torch.zeros_like(r), torch.ones_like(t)),
        )
        return u, du_dt.detach()

    def _make_aux_v_head(self) -> nn.Module:
        if not hasattr(self.head, "features"):
            raise ValueError(
                f"aux_v_head=True needs a head with `features`, which {type(self.head).__name__} "
                "does not have; set aux_v_head=False or use IMFTransformer1D"
            )
        head = cast(IMFTransformer1D, self.head)
        output = nn.Linear(head.n_emb, self.action_dim)
        nn.init.normal_(output.weight, std=0.02)  # as in the head
        nn.init.zeros_(output.bias)
        return nn.Sequential(RMSNorm(head.n_emb, head.ln_f.eps), output)

    def _same_dropout_masks(self, like: Tensor) -> AbstractContextManager[None]:
        """Restore the random state on exit, so that the JVP of the network uses the same masks.

        Outside of training this does nothing. `torch.compile` cannot trace it.
        """
        if not self.training:
            return nullcontext()
        return torch.random.fork_rng([like.device] if like.device.type == "cuda" else [])

    @classmethod
    def _compound_velocity(cls, u: Tensor, du_dt: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """Estimate the instantaneous velocity (B, T, D) as V = u + (t - r) sg(du/dt)."""
        return u + (t - r)[:, None, None] * du_dt.detach()

    @staticmethod
    def _broadcast_batch_time(time: Tensor, like: Tensor) -> Tensor:
        """Reshape times (B,) to (B, 1, ..., 1) with as many dimensions as `like`."""
        return time.view(-1, *[1] * (like.ndim - 1))
