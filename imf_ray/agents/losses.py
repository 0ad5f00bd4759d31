"""Losses of an error, and means over valid action steps."""

from collections.abc import Callable

from torch import Tensor

ADAPTIVE_EPS = 0.01
"""Bounds the weight of a sample without error (arXiv 2512.02012)."""


def mse(error: Tensor) -> Tensor:
    """Elementwise error^2."""
    return error.square()


def pseudo_huber(error: Tensor) -> Tensor:
    """Elementwise sqrt(1 + error^2) - 1: quadratic below delta = 1, linear far above it."""
    return (1 + error.square()).sqrt() - 1


def adaptive_l2(error: Tensor, is_pad: Tensor) -> Tensor:
    """error^2 of each sample times 1 / sg(l + 0.01), l the mean of its own (arXiv 2512.02012).

    Args:
        error: (B, T, D).
        is_pad: (B, T); l is the mean over the steps that are not padding.

    Returns:
        (B, T, D). Their masked mean counts a sample's l / sg(l + 0.01) in proportion to its valid
        steps, as it counts any other loss; a sample's weight is its own, so that the gradients of
        parts of a batch still add up to the batch's. The value hardly tells good from bad, as it
        is near one wherever l is far above 0.01: the gradients are what it is for.
    """
    square = error.square()
    valid = (~is_pad).sum(dim=1).clamp(min=1) * error.shape[-1]
    of_sample = square.detach().masked_fill(is_pad[..., None], 0.0).sum(dim=(1, 2)) / valid
    return square / (of_sample + ADAPTIVE_EPS)[:, None, None]


def masked_mean(losses: Tensor, is_pad: Tensor, valid_count: Tensor | None = None) -> Tensor:
    """Mean of losses (B, T, D) over the steps (B, T) that are not padding; 0 if all are.

    valid_count replaces the number of valid steps in the denominator (see `VLAAgent.compute_loss`).
    """
    valid = ~is_pad
    count = valid.sum() if valid_count is None else valid_count
    count = count.where(count > 0, 1).to(losses.dtype)
    return losses.masked_fill(is_pad[..., None], 0.0).sum() / (count * losses.shape[-1])


LOSS_TYPES: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": mse,
    "pseudo_huber": pseudo_huber,
}
"""Losses of each number for itself."""
VELOCITY_LOSS_TYPES = (*LOSS_TYPES, "adaptive")


def velocity_loss(
    loss_type: str, error: Tensor, is_pad: Tensor, valid_count: Tensor | None = None
) -> Tensor:
    """The scalar loss, one of `VELOCITY_LOSS_TYPES`, of errors (B, T, D); see `masked_mean`."""
    losses = adaptive_l2(error, is_pad) if loss_type == "adaptive" else LOSS_TYPES[loss_type](error)
    return masked_mean(losses, is_pad, valid_count)
