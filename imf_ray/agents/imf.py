"""The improved-MeanFlow agent: learns an average velocity, acts with one network call per chunk.

Source: "Improved Mean Flows" (arXiv 2512.02012). Time runs from data (t = 0) to noise (t = 1):
z_t = (1 - t) x + t e, with the velocity v* = e - x.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from imf_ray.agents.base import VLAAgent, check_choice
from imf_ray.agents.losses import VELOCITY_LOSS_TYPES, velocity_loss
from imf_ray.agents.time_sampling import TIME_SAMPLERS, TimeSampler
from imf_ray.models.attnres import RMSNorm
from imf_ray.models.imf_transformer import IMFTransformer1D

PREDICTION_TYPES = ("velocity", "sample")
MIN_TIME = 0.05
"""Bound of the time that a sample's distance to its data is divided by."""


class IMFVLAAgent(VLAAgent):
    """`VLAAgent` with the iMF objective and one-step inference.

    Args:
        loss_type: one of `VELOCITY_LOSS_TYPES`. The default bounds the gradient of an error: a few
            batches in a hundred have an extreme du/dt, and the squared error has been seen to
            diverge on them.
        prediction_type: what the head predicts, one of `PREDICTION_TYPES`. "velocity": u itself.
            "sample": the action chunk x, from which u = (z_t - x) / t follows ("pixel MeanFlow",
            arXiv 2601.22158), t bounded below by `MIN_TIME` (arXiv 2511.13720). One step is
            then x itself; a velocity has to carry the noise through the network, exactly, so that
            it cancels.
        time_sampler: one of `time_samplers`. The default was the best of four at one step
            (docs/results/time_samplers.md).
        aux_v_head: a second output of the network is trained to be the instantaneous velocity
            v(z_t, t), by the same loss, and gives du/dt its direction; inference has no use for
            it. Without, v = u(z_t, t, t). (arXiv 2512.02012 has both.)
        kwargs: see `VLAAgent`.

    Raises:
        ValueError: for an impossible combination, naming the option, its value and the way out.
    """

    time_samplers: ClassVar[Mapping[str, TimeSampler]] = TIME_SAMPLERS

    def __init__(
        self,
        *,
        loss_type: str = "pseudo_huber",
        prediction_type: str = "velocity",
        time_sampler: str = "logit_normal",
        aux_v_head: bool = False,
        **kwargs: Any,
    ) -> None:
        check_choice("loss_type", loss_type, VELOCITY_LOSS_TYPES)
        check_choice("prediction_type", prediction_type, PREDICTION_TYPES)
        check_choice("time_sampler", time_sampler, tuple(self.time_samplers))
        super().__init__(**kwargs)
        self.loss_type = loss_type
        self.prediction_type = prediction_type
        self.time_sampler = time_sampler
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
        r, t = self._sample_times(uniforms)
        errors = self._velocity_errors(actions, noise, r, t, cond)
        first, *rest = (velocity_loss(self.loss_type, e, is_pad, valid_count) for e in errors)
        return sum(rest, start=first)

    def _sample_times(self, uniforms: Tensor) -> tuple[Tensor, Tensor]:
        """Uniforms (B, 3) -> (r, t), each (B,)."""
        return self.time_samplers[self.time_sampler](uniforms)

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
        return sample - self._broadcast_batch_time(t - r, sample) * self._velocity(
            sample, r, t, cond
        )

    def _velocity(self, z_t: Tensor, r: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """u(z_t, r, t), the average velocity from t to r, (B, T, D)."""
        return self._to_velocity(self.head(z_t, r, t, cond), z_t, t)

    def _instantaneous_velocity(self, z_t: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """v(z_t, t), (B, T, D): the auxiliary head's, or u(z_t, t, t) without gradient."""
        # What follows differentiates this very network, so it must draw the same dropout masks.
        with self._same_dropout_masks(z_t.device):
            if self.aux_v_head is not None:
                features = cast(IMFTransformer1D, self.head).features(z_t, t, t, cond)
                return self._to_velocity(self.aux_v_head(features), z_t, t)
            with torch.no_grad():
                return self._velocity(z_t, t, t, cond)

    def _to_velocity(self, prediction: Tensor, z_t: Tensor, t: Tensor) -> Tensor:
        """The velocity (B, T, D) that a prediction stands for."""
        if self.prediction_type == "velocity":
            return prediction
        return (z_t - prediction) / self._broadcast_batch_time(t.clamp(min=MIN_TIME), z_t)

    def _velocity_errors(
        self, actions: Tensor, noise: Tensor, r: Tensor, t: Tensor, cond: Tensor
    ) -> tuple[Tensor, ...]:
        """What is trained towards zero, each (B, T, D): V - v*, and v - v* of an auxiliary head."""
        z_t, target = self._interpolate(actions, noise, t), noise - actions
        v = self._instantaneous_velocity(z_t, t, cond)
        u, du_dt = self._compute_u_and_du_dt(z_t, r, t, cond, v)
        error = self._compound_velocity(u, du_dt, r, t) - target
        return (error,) if self.aux_v_head is None else (error, v - target)

    def _compute_u_and_du_dt(
        self, z_t: Tensor, r: Tensor, t: Tensor, cond: Tensor, v: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """u(z_t, r, t) and its total derivative by t, each (B, T, D); only u has a gradient.

        du/dt is the Jacobian-vector product of the network with (v, 0, 1), where v (B, T, D) is the
        network's own instantaneous velocity, computed here if it is not given.
        """
        if v is None:
            v = self._instantaneous_velocity(z_t, t, cond)
        u, du_dt = torch.func.jvp(  # type: ignore[misc]
            lambda z, start, end: self._velocity(z, start, end, cond),
            (z_t, r, t),
            (v.detach(), torch.zeros_like(r), torch.ones_like(t)),
        )
        return u, du_dt.detach()

    def _make_aux_v_head(self) -> nn.Module:
        if not hasattr(self.head, "features"):
            raise ValueError(
                f"aux_v_head=True reads the head's features, which {type(self.head).__name__} does "
                "not give; set aux_v_head=False or take the head IMFTransformer1D"
            )
        head = cast(IMFTransformer1D, self.head)
        output = nn.Linear(head.n_emb, self.action_dim)
        nn.init.normal_(output.weight, std=0.02)  # as in the head
        nn.init.zeros_(output.bias)
        return nn.Sequential(RMSNorm(head.n_emb, head.ln_f.eps), output)

    def _same_dropout_masks(self, device: torch.device) -> AbstractContextManager[None]:
        """Restores the random state on leaving: what follows draws the same dropout masks."""
        if not (self._head_has_dropout and self.training):
            return nullcontext()  # torch.compile cannot trace a fork of the random state
        return torch.random.fork_rng([device] if device.type == "cuda" else [])

    @classmethod
    def _compound_velocity(cls, u: Tensor, du_dt: Tensor, r: Tensor, t: Tensor) -> Tensor:
        """V = u + (t - r) sg(du/dt), the estimate of the instantaneous velocity."""
        return u + cls._broadcast_batch_time(t - r, u) * du_dt.detach()

    @classmethod
    def _interpolate(cls, actions: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t = (1 - t) x + t e, (B, T, D)."""
        fraction = cls._broadcast_batch_time(t, actions)
        return (1 - fraction) * actions + fraction * noise

    @staticmethod
    def _broadcast_batch_time(time: Tensor, like: Tensor) -> Tensor:
        """Times (B,) -> (B, 1, ..., 1) with as many dimensions as `like`."""
        return time.view(-1, *[1] * (like.ndim - 1))
