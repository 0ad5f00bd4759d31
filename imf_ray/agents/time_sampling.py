"""Samplers of the times at which an objective is trained.

Time runs from data (t = 0) to noise (t = 1), and r <= t. A sampler is a pure function of uniform
numbers, so a sample's times depend neither on its rank nor on its batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor

TimeSampler = Callable[[Tensor], tuple[Tensor, Tensor]]

LOGIT_NORMAL = -0.4, 1.0
"""Mean and deviation of a time before the sigmoid (arXiv 2512.02012)."""
LOGIT_NORMAL_P_EQUAL = 0.5
"""P(r = t) of `sample_times_logit_normal`."""
MEANFLOW_V1_R, MEANFLOW_V1_T = (-4.0, 1.6), (-0.6, 1.6)
"""The same as `LOGIT_NORMAL`, for r and t."""
ENDPOINT_MIX_P_EQUAL, ENDPOINT_MIX_P_R_ZERO, ENDPOINT_MIX_P_ENDPOINT = 0.25, 0.25, 0.25
"""P(r = t), P(r = 0 < t < 1) and P(r = 0, t = 1) of `sample_times_endpoint_mix`."""
BETA_ALPHA = 1.5
"""The first parameter of `sample_times_beta`'s Beta(1.5, 1) (arXiv 2410.24164)."""


def sample_times_uniform(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Uniforms (B, 3) -> (r, t), each (B,): the first two, sorted.

    P(t - r > 0.8) is 4 %, P(r = t) is 0.
    """
    return _sort(uniforms[:, 0], uniforms[:, 1])


def sample_times_logit_normal(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Uniforms (B, 3) -> (r, t), each (B,): the sampler of the iMF paper (arXiv 2512.02012).

    The first two become sigmoid(N(-0.4, 1)) and are sorted; where the third is below one half,
    r := t. P(t - r > 0.8) is 0.05 %, P(r = t) is 50 %.
    """
    first, second = (_logit_normal(uniforms[:, i], LOGIT_NORMAL) for i in (0, 1))
    r, t = _sort(first, second)
    return torch.where(uniforms[:, 2] < LOGIT_NORMAL_P_EQUAL, t, r), t


def sample_times_meanflow_v1(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Uniforms (B, 3) -> (r, t), each (B,): the better CIFAR run of MeanFlow (arXiv 2505.13447).

    The first becomes sigmoid(N(-4, 1.6^2)), the second sigmoid(N(-0.6, 1.6^2)); then they are
    sorted. P(t - r > 0.8) is 8.1 %, P(r = t) is 0.
    """
    return _sort(
        _logit_normal(uniforms[:, 0], MEANFLOW_V1_R), _logit_normal(uniforms[:, 1], MEANFLOW_V1_T)
    )


def sample_times_endpoint_mix(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Uniforms (B, 3) -> (r, t), each (B,): what a step from t = 1 to r = 0 depends on.

    The third chooses, a quarter each:

    * r = t, uniform: the instantaneous velocity, which is the tangent of everything else;
    * the edge r = 0, t uniform. Along a path of the flow d/dt [t u(z_t, 0, t)] is the compound
      velocity V, so the error of a single step is the mean over t of V's errors on this edge, and
      its square is at most the mean of their squares;
    * the corner (0, 1) itself;
    * two sorted uniforms, for steps that are neither.

    P(t - r > 0.8) is 31 %, P(r = t) is 25 %.
    """
    first, choice = uniforms[:, 0], uniforms[:, 2]
    r, t = _sort(first, uniforms[:, 1])
    same = choice < ENDPOINT_MIX_P_EQUAL
    edge = choice < ENDPOINT_MIX_P_EQUAL + ENDPOINT_MIX_P_R_ZERO
    point = choice < ENDPOINT_MIX_P_EQUAL + ENDPOINT_MIX_P_R_ZERO + ENDPOINT_MIX_P_ENDPOINT
    r = torch.where(same, first, torch.where(point, 0.0, r))
    return r, torch.where(edge, first, torch.where(point, 1.0, t))


def sample_t_uniform(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Uniforms (B, 3) -> r = t, each (B,): the first."""
    return uniforms[:, 0], uniforms[:, 0]


def sample_t_logit_normal(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Uniforms (B, 3) -> r = t, each (B,): sigmoid(N(-0.4, 1)) of the first.

    The family is that of arXiv 2403.03206, the numbers those of `sample_times_logit_normal`.
    """
    t = _logit_normal(uniforms[:, 0], LOGIT_NORMAL)
    return t, t


def sample_t_beta(uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Uniforms (B, 3) -> r = t, each (B,): Beta(1.5, 1) of the first, more noise than data.

    The sampler of pi0 (arXiv 2410.24164), without its cut at t = 0.001.
    """
    t = uniforms[:, 0] ** (1 / BETA_ALPHA)
    return t, t


def _logit_normal(uniform: Tensor, mean_and_std: tuple[float, float]) -> Tensor:
    """Uniforms -> sigmoid(N(mean, std^2))."""
    mean, std = mean_and_std
    return (torch.special.ndtri(uniform) * std + mean).sigmoid()


def _sort(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """The smaller and the larger; contiguous, for compiled JVPs."""
    return torch.minimum(first, second), torch.maximum(first, second)


TIME_SAMPLERS: dict[str, TimeSampler] = {
    "uniform": sample_times_uniform,
    "logit_normal": sample_times_logit_normal,
    "meanflow_v1": sample_times_meanflow_v1,
    "endpoint_mix": sample_times_endpoint_mix,
}
"""Of intervals, for iMF."""
SINGLE_TIME_SAMPLERS: dict[str, TimeSampler] = {
    "uniform": sample_t_uniform,
    "logit_normal": sample_t_logit_normal,
    "beta": sample_t_beta,
}
"""Of single times, for flow matching."""
