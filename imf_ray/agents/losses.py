"""Elementwise losses and their mean over the valid action steps."""

from torch import Tensor

LOSS_TYPES = ("mse", "pseudo_huber")
"""Losses of each number by itself."""
VELOCITY_LOSS_TYPES = (*LOSS_TYPES, "adaptive")
"""Losses of velocity errors; "adaptive" also depends on the rest of the sample."""
ADAPTIVE_EPS = 0.01
"""Added to a sample's mean squared error before dividing by it (arXiv 2512.02012)."""


def masked_loss(
    loss_type: str | None, error: Tensor, is_pad: Tensor, valid_count: Tensor | None = None
) -> Tensor:
    """Mean loss of errors (B, T, D) over the steps (B, T) that are not padding; 0 if all are.

    "mse" is error^2. "pseudo_huber" is sqrt(1 + error^2) - 1: quadratic for small errors, linear
    for large ones, with delta = 1. "adaptive" is described in `adaptive_l2`. None averages the
    errors themselves.

    `valid_count` replaces the number of valid steps in the denominator (see `VLAAgent.forward`).
    """
    if loss_type is None:
        losses = error
    elif loss_type == "mse":
        losses = error.square()
    elif loss_type == "pseudo_huber":
        losses = (1 + error.square()).sqrt() - 1
    else:
        losses = adaptive_l2(error, is_pad)
    valid = ~is_pad
    count = valid.sum() if valid_count is None else valid_count
    count = count.where(count > 0, 1).to(losses.dtype)
    return losses.masked_fill(is_pad[..., None], 0.0).sum() / (count * losses.shape[-1])


def adaptive_l2(error: Tensor, is_pad: Tensor) -> Tensor:
    """Squared errors (B, T, D), divided by sg(l + 0.01) of their sample (arXiv 2512.02012).

    l is the sample's mean squared error over its valid steps and sg stops the gradient. A weight
    depends only on its own sample, so gradients of parts of a batch add up to the batch's gradient.
    The loss value is close to 1 wherever l is far above 0.01 and does not measure progress.

    Args:
        error: (B, T, D).
        is_pad: (B, T) bool.
    """
    square = error.square()
    valid = (~is_pad).sum(dim=1).clamp(min=1) * error.shape[-1]
    per_sample = square.detach().masked_fill(is_pad[..., None], 0.0).sum(dim=(1, 2)) / valid
    return square / (per_sample + ADAPTIVE_EPS)[:, None, None]
