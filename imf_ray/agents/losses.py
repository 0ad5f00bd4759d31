"""Losses of action errors, averaged over the actions that are not padding."""

from torch import Tensor

LOSS_TYPES = ("mse", "pseudo_huber")
"""Losses that depend on each element separately."""
VELOCITY_LOSS_TYPES = (*LOSS_TYPES, "adaptive")
"""Losses of velocity errors. "adaptive" also depends on the other elements of the sample."""
ADAPTIVE_EPS = 0.01
"""Constant added to a sample's mean squared error, the divisor of "adaptive" (arXiv 2512.02012)."""


def masked_loss(
    loss_type: str | None, error: Tensor, is_pad: Tensor, valid_count: Tensor | None = None
) -> Tensor:
    """Average the loss of errors (B, T, D) over the actions (B, T) that are not padding.

    The result is 0 if all actions are padding.

    "mse" is error^2. "pseudo_huber" is sqrt(1 + error^2) - 1: quadratic for small errors, linear
    for large ones, with delta = 1. "adaptive" is described in `adaptive_l2`. None averages the
    errors themselves.

    `valid_count` replaces the number of valid actions in the denominator (see `VLAAgent.forward`).
    """
    if loss_type is None:
        losses = error
    elif loss_type == "mse":
        losses = error.square()
    elif loss_type == "pseudo_huber":
        losses = (1 + error.square()).sqrt() - 1
    elif loss_type == "adaptive":
        losses = adaptive_l2(error, is_pad)
    else:
        raise ValueError(f"loss_type={loss_type!r} is unknown")
    valid = ~is_pad
    count = valid.sum() if valid_count is None else valid_count
    count = count.where(count > 0, 1).to(losses.dtype)
    return losses.masked_fill(is_pad[..., None], 0.0).sum() / (count * losses.shape[-1])


def adaptive_l2(error: Tensor, is_pad: Tensor) -> Tensor:
    """Divide squared errors (B, T, D) by sg(l + 0.01) of their sample (arXiv 2512.02012).

    l is the sample's mean squared error over its valid actions, and sg stops the gradient. The
    divisor depends only on its own sample, so gradients of parts of a batch add up to the batch's
    gradient. The loss is close to 1 if l is far above 0.01, so its value does not measure progress.

    Args:
        error: (B, T, D).
        is_pad: (B, T) bool.
    """
    square = error.square()
    valid = (~is_pad).sum(dim=1).clamp(min=1) * error.shape[-1]
    per_sample = square.detach().masked_fill(is_pad[..., None], 0.0).sum(dim=(1, 2)) / valid
    return square / (per_sample + ADAPTIVE_EPS)[:, None, None]
