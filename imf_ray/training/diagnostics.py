"""What tells a healthy training from a sick one: gradient norms, and a look inside the policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.diagnostics import depth_weights, velocity_diagnostics
from imf_ray.agents.imf import IMFVLAAgent
from imf_ray.files import retry_io, write_figure

DEPTH_WEIGHTS = "depth_weights.png"
PICTURE_INCHES = 6.0


class GradientNorms:
    """Gradient norms before clipping since the last line of the log; they stay on the device.

    Args:
        clip: the norm that gradients are cut down to.
    """

    def __init__(self, clip: float) -> None:
        self._clip = clip
        self._norms: list[Tensor] = []

    def add(self, norm: Tensor) -> None:
        """Remember one update's norm, a scalar."""
        self._norms.append(norm.detach())

    def metrics(self) -> dict[str, float]:
        """The last norm, the largest, and the share of the updates that were clipped."""
        norms = torch.stack(self._norms)
        self._norms.clear()
        return {
            "grad_norm": float(norms[-1]),
            "grad_norm_max": float(norms.max()),
            "grad_clip_frac": float((norms > self._clip).float().mean()),
        }


def run_diagnostics(agent: VLAAgent, batch: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Look into an agent as far as it lets: numbers for the log, and a picture in `folder`.

    Neither its weights nor its mode are changed. The cost is that of two forward passes.

    Args:
        batch: as `VLAAgent.compute_loss` takes it.
    """
    found: dict[str, float] = {}
    training = agent.training
    agent.eval()
    try:
        if isinstance(agent, IMFVLAAgent):
            found = velocity_diagnostics(agent, batch)
        if hasattr(agent.head, "attnres_backbone"):
            draw_depth_weights(depth_weights(agent, batch), folder / DEPTH_WEIGHTS)
    finally:
        agent.train(training)
    return found


def draw_depth_weights(weights: Tensor, path: Path) -> None:
    """A heat map of `depth_weights`: each row a sub-layer, each column an output that it reads."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(PICTURE_INCHES, PICTURE_INCHES), layout="constrained")
    axes = figure.subplots()
    unread = torch.ones_like(weights).triu(1).bool()  # what comes later
    image = axes.imshow(weights.masked_fill(unread, torch.nan), vmin=0.0)
    axes.set_xlabel("source (0: the tokens; odd: attention, even: feed-forward)")
    axes.set_ylabel("sub-layer (even: attention, odd: feed-forward)")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image, label="mean weight", shrink=0.8)
    retry_io(lambda: write_figure(path, figure))
