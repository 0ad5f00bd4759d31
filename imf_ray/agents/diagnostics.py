"""What goes on inside a policy: the terms of the iMF velocity, the depths that are looked at."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.imf import IMFVLAAgent
from imf_ray.agents.losses import masked_mean

INTERVAL_BUCKETS = 5
"""Equal parts of 0 < t - r <= 1; r = t is a bucket of its own."""


def velocity_diagnostics(agent: IMFVLAAgent, batch: Mapping[str, Any]) -> dict[str, float]:
    """How large du/dt and the error of the velocity V are, by the length t - r of the interval.

    A spike of the loss with a large du/dt in the long buckets is the derivative's; one without is
    the data's. The cost is that of a forward pass of the loss.

    Args:
        batch: as `VLAAgent.compute_loss` takes it, with its random numbers if they are to be those
            of the training step.

    Returns:
        "du_dt/BUCKET" and "velocity_error/BUCKET": root mean squares over the valid actions in
        normalized units. BUCKET is "same" (r = t), "0.0-0.2" (0 < t - r <= 0.2) ... "0.8-1.0";
        buckets without a valid action are left out.
    """
    with _looking_only(agent):
        actions, cond, rows = agent._expand_noise_samples(batch)
        noise, uniforms = agent._draws(actions, rows)
        r, t = agent._sample_times(uniforms)
        z_t = agent._interpolate(actions, noise, t)
        u, du_dt = agent._compute_u_and_du_dt(z_t, r, t, cond)
        error = agent._compound_velocity(u, du_dt, r, t) - (noise - actions)

    buckets = {"same": r == t}
    for index in range(INTERVAL_BUCKETS):
        low, high = index / INTERVAL_BUCKETS, (index + 1) / INTERVAL_BUCKETS
        buckets[f"{low:.1f}-{high:.1f}"] = (t - r > low) & (t - r <= high)
    found = {}
    for name, rows_in in buckets.items():
        left_out = rows["action_is_pad"] | ~rows_in[:, None]
        if left_out.all():
            continue
        for term, values in (("du_dt", du_dt), ("velocity_error", error)):
            found[f"{term}/{name}"] = masked_mean(values.square(), left_out).sqrt().item()
    return found


def depth_weights(agent: VLAAgent, batch: Mapping[str, Any]) -> Tensor:
    """How much of each earlier output every sub-layer of the head reads when a chunk is predicted.

    Args:
        agent: one whose head has attention residuals (arXiv 2603.15031).
        batch: observations as `VLAAgent.predict_action` takes them; "noise", (B, pred_horizon,
            action_dim) or with an axis of draws of which the first is taken, is used if it is
            there.

    Returns:
        (2 * n_layer, 2 * n_layer): row i are the softmax weights of sub-layer i (attention and
        feed-forward in turn) over its sources, 0 the token embedding and s the output of sub-layer
        s - 1, averaged over batch, tokens and network calls; zero for s > i.

    Raises:
        ValueError: the head has no attention residuals.
    """
    backbone = getattr(agent.head, "attnres_backbone", None)
    if backbone is None:
        raise ValueError(
            f"the head {type(agent.head).__name__} has no attention residuals to look at; take an "
            "agent with head.backbone_type='attnres_full'"
        )
    size = len(backbone.layers)
    total = torch.zeros(size, size, dtype=torch.float64)
    calls = 0

    def look(operator: nn.Module, args: tuple[Sequence[Tensor], Sequence[Tensor]]) -> None:
        nonlocal calls
        sources, logits = args
        weights = torch.cat(tuple(logits), dim=-1).softmax(dim=-1)
        total[len(sources) - 1, : len(sources)] += weights.mean(dim=(0, 1)).cpu()
        calls += len(sources) == size

    noise = batch.get("noise")
    if noise is not None and noise.ndim == 4:
        noise = noise[:, 0]
    hooks = [layer.attn_res.register_forward_pre_hook(look) for layer in backbone.layers]
    try:
        with _looking_only(agent):
            agent.predict_action(batch, noise)
    finally:
        for hook in hooks:
            hook.remove()
    return total / calls


@contextmanager
def _looking_only(agent: VLAAgent) -> Iterator[None]:
    """Without gradients, and with the random state (dropout, crops, draws) put back afterwards."""
    device = agent.action_normalizer.mean.device
    cuda = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(cuda):
        yield
