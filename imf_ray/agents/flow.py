"""The flow-matching agent: learns the instantaneous velocity, acts by Euler steps along it.

Source: "Flow Matching for Generative Modeling" (arXiv 2210.02747), with the path and the direction
of time of `imf_ray.agents.imf`. It is iMF with r = t, where V = u and no derivative is needed.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from imf_ray.agents.imf import IMFVLAAgent
from imf_ray.agents.time_sampling import SINGLE_TIME_SAMPLERS, TimeSampler


class FlowVLAAgent(IMFVLAAgent):
    """`IMFVLAAgent` on the diagonal r = t: every call of the head is v(z_t, t) = u(z_t, t, t).

    Args:
        inference_steps: Euler steps for a chunk, one network call each.
        kwargs: see `IMFVLAAgent`; `time_sampler` is one of `SINGLE_TIME_SAMPLERS`.

    Raises:
        ValueError: for an impossible combination, naming the option, its value and the way out.
    """

    time_samplers: ClassVar[Mapping[str, TimeSampler]] = SINGLE_TIME_SAMPLERS

    def __init__(self, *, inference_steps: int = 10, **kwargs: Any) -> None:
        if kwargs.get("aux_v_head"):
            raise ValueError(
                "aux_v_head=True gives a derivative its direction, and flow matching has none; "
                "set aux_v_head=False or objective='imf'"
            )
        super().__init__(inference_steps=inference_steps, **kwargs)

    def _velocity_errors(
        self, actions: Tensor, noise: Tensor, r: Tensor, t: Tensor, cond: Tensor
    ) -> tuple[Tensor, ...]:
        """v(z_t, t) - v*, (B, T, D)."""
        z_t = self._interpolate(actions, noise, t)
        return (self._velocity(z_t, t, t, cond) - (noise - actions),)

    def _sample_one_step(self, sample: Tensor, r: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """An Euler step: z_r = z_t - (t - r) v(z_t, t)."""
        start = t.expand(sample.shape[0])
        return sample - (t - r) * self._velocity(sample, start, start, cond)
