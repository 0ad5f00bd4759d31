"""Diagnostics of training: gradient norms, and measurements inside the policy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.diagnostics import residual_attention_weights, velocity_diagnostics
from imf_ray.agents.velocity import VelocityAgent
from imf_ray.training.run_dir import RunDir

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURE_INCHES = 6.0
"""Width and height of the figure in inches."""


class GradientNorms:
    """Collects the gradient norms of all updates since the last log line, before clipping.

    The norms stay on the device until `metrics` is called.

    Args:
        clip: maximum norm, to which larger gradients are clipped.
    """

    def __init__(self, clip: float) -> None:
        self._clip = clip
        self._norms: list[Tensor] = []

    def add(self, norm: Tensor) -> None:
        """Add the norm of one update, a scalar."""
        self._norms.append(norm.detach())

    def metrics(self) -> dict[str, float]:
        """Return the last norm, the maximum and the fraction of clipped updates; then clear."""
        norms = torch.stack(self._norms)
        self._norms.clear()
        return {
            "grad_norm": float(norms[-1]),
            "grad_norm_max": float(norms.max()),
            "grad_clip_frac": float((norms > self._clip).float().mean()),
        }


def run_diagnostics(agent: VLAAgent, batch: Mapping[str, Any], run_dir: RunDir) -> dict[str, float]:
    """Return the diagnostic metrics that an agent supports.

    For an agent with attention residuals, a figure of them is written into the run's folder. The
    agent's weights and mode are not changed. The cost is about two forward passes.

    Args:
        batch: see `VLAAgent.compute_loss`.
    """
    metrics: dict[str, float] = {}
    training = agent.training
    agent.eval()
    try:
        if isinstance(agent, VelocityAgent):
            metrics = velocity_diagnostics(agent, batch)
        if hasattr(agent.head, "attnres_backbone"):
            figure = plot_depth_weights(residual_attention_weights(agent, batch))
            run_dir.write_depth_weights(figure)
    finally:
        agent.train(training)
    return metrics


def plot_depth_weights(weights: Tensor) -> Figure:
    """Plot `residual_attention_weights`: one row per sub-layer, one column per source."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(FIGURE_INCHES, FIGURE_INCHES), layout="constrained")
    axes = figure.subplots()
    later = torch.ones_like(weights).triu(1).bool()  # outputs of later sub-layers are not read
    image = axes.imshow(weights.masked_fill(later, torch.nan), vmin=0.0)
    axes.set_xlabel("source (0: input tokens; odd: attention, even: feed-forward)")
    axes.set_ylabel("sub-layer (even: attention, odd: feed-forward)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, label="mean weight", shrink=0.8)
    return figure
