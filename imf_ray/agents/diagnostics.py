"""Diagnostics of a policy: velocity terms by time interval, and attention-residual weights."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.imf import IMFVLAAgent
from imf_ray.agents.losses import masked_loss
from imf_ray.agents.velocity import VelocityAgent

INTERVAL_BUCKETS = 5
"""Number of equal buckets of 0 < t - r <= 1. There is a separate bucket for r = t."""


def velocity_diagnostics(agent: VelocityAgent, batch: Mapping[str, Any]) -> dict[str, float]:
    """Compute the size of du/dt and of the velocity error for each length t - r of the interval.

    If du/dt of long intervals is large in a loss spike, the derivative caused the spike. Otherwise
    the data did. The cost is that of a forward pass of the loss.

    Args:
        batch: a batch for `VLAAgent.forward`. With its optional noise and times, the values are
            those of the training step.

    Returns:
        "du_dt/BUCKET" and "velocity_error/BUCKET": root mean squares over the valid actions in
        normalized units. BUCKET is "same" (r = t), "0.0-0.2" (0 < t - r <= 0.2) ... "0.8-1.0".
        Buckets without a valid action are omitted.
    """
    with _no_side_effects(agent):
        inputs = agent._objective_inputs(batch)
        actions, noise = inputs.actions, inputs.noise
        r, t = agent.time_samplers[agent.time_sampler](inputs.uniforms)
        noise_fraction = t[:, None, None]
        z_t = (1 - noise_fraction) * actions + noise_fraction * noise
        u, du_dt = _u_and_du_dt(agent, z_t, r, t, inputs.cond)
        error = u + (t - r)[:, None, None] * du_dt - (noise - actions)

    buckets = {"same": r == t}
    for index in range(INTERVAL_BUCKETS):
        low, high = index / INTERVAL_BUCKETS, (index + 1) / INTERVAL_BUCKETS
        buckets[f"{low:.1f}-{high:.1f}"] = (t - r > low) & (t - r <= high)
    metrics = {}
    for name, in_bucket in buckets.items():
        ignored = inputs.is_pad | ~in_bucket[:, None]
        if ignored.all():
            continue
        for term, values in (("du_dt", du_dt), ("velocity_error", error)):
            metrics[f"{term}/{name}"] = masked_loss("mse", values, ignored).sqrt().item()
    return metrics


def residual_attention_weights(agent: VLAAgent, batch: Mapping[str, Any]) -> Tensor:
    """Measure the weights with which each sub-layer of the head reads earlier outputs.

    Args:
        agent: an agent whose head has attention residuals (arXiv 2603.15031).
        batch: observations for `VLAAgent.predict_action`. An optional "noise" (B, pred_horizon,
            action_dim) is used. If it has several noise samples per observation, the first is.

    Returns:
        (2 * n_layer, 2 * n_layer): row i has the softmax weights of sub-layer i (attention and
        feed-forward in turn) over its sources, averaged over batch, tokens and network calls.
        Source 0 is the token embedding, source s the output of sub-layer s - 1. Weights of s > i
        are zero.

    Raises:
        ValueError: the head has no attention residuals.
    """
    backbone = getattr(agent.head, "attnres_backbone", None)
    if backbone is None:
        raise ValueError(
            f"the head {type(agent.head).__name__} has no attention residuals; use an agent with "
            "head.backbone_type='attnres_full'"
        )
    size = len(backbone.layers)
    total = torch.zeros(size, size, dtype=torch.float64)
    calls = 0

    def record_weights(
        operator: nn.Module, args: tuple[Sequence[Tensor], Sequence[Tensor]]
    ) -> None:
        nonlocal calls
        sources, logits = args
        weights = torch.cat(tuple(logits), dim=-1).softmax(dim=-1)
        total[len(sources) - 1, : len(sources)] += weights.mean(dim=(0, 1)).cpu()
        calls += len(sources) == size

    noise = batch.get("noise")
    if noise is not None and noise.ndim == 4:
        noise = noise[:, 0]
    hooks = [layer.attn_res.register_forward_pre_hook(record_weights) for layer in backbone.layers]
    try:
        with _no_side_effects(agent):
            agent.predict_action(batch, noise)
    finally:
        for hook in hooks:
            hook.remove()
    return total / calls


def _u_and_du_dt(
    agent: VelocityAgent, z_t: Tensor, r: Tensor, t: Tensor, cond: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the network's velocity and its derivative by t along it, each (B, T, D)."""
    if isinstance(agent, IMFVLAAgent):
        aux_v = None if agent.aux_v_head is None else agent._aux_velocity(z_t, t, cond)
        return agent._compute_u_and_du_dt(z_t, r, t, cond, aux_v)
    v = agent._average_velocity(z_t, t, t, cond)
    u, du_dt = torch.func.jvp(  # type: ignore[misc]
        partial(agent._average_velocity, cond=cond),
        (z_t, r, t),
        (v, torch.zeros_like(r), torch.ones_like(t)),
    )
    return u, du_dt


@contextmanager
def _no_side_effects(agent: VLAAgent) -> Iterator[None]:
    """Disable gradients, and restore the random state (dropout, crops, noise) on exit."""
    device = agent.action_normalizer.mean.device
    cuda = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(cuda):
        yield
