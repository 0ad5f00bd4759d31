"""Losses and their mean over valid actions."""

import pytest
import torch
from torch import Tensor

from imf_ray.agents.losses import (
    LOSS_TYPES,
    VELOCITY_LOSS_TYPES,
    adaptive_l2,
    masked_loss,
)


def test_pseudo_huber_is_quadratic_then_linear() -> None:
    for error, expected in ((0.0, 0.0), (1e-2, 5e-5), (-1e4, 1e4 - 1)):
        loss = masked_loss("pseudo_huber", torch.full((1, 1, 1), error), torch.zeros(1, 1).bool())
        assert loss.item() == pytest.approx(expected, rel=1e-2, abs=1e-6)


def test_the_mean_ignores_padding() -> None:
    losses = torch.tensor([[[1.0, 3.0], [100.0, float("inf")]]])
    is_pad = torch.tensor([[False, True]])
    assert masked_loss(None, losses, is_pad) == 2
    assert masked_loss(None, losses, is_pad, valid_count=torch.tensor(0.5)) == 4
    assert masked_loss(None, losses, torch.tensor([[True, True]])) == 0


@pytest.fixture
def errors() -> tuple[Tensor, Tensor]:
    """Errors (3, 4, 2) of three sizes; samples have one, four and two valid steps."""
    scale = torch.tensor([0.01, 0.3, 10.0], dtype=torch.float64)[:, None, None]
    error = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    is_pad = torch.tensor([[False, True, True, True], [False] * 4, [False, False, True, True]])
    return (error * scale).requires_grad_(), is_pad


def test_adaptive_weights_each_sample_by_its_own_error(errors: tuple[Tensor, Tensor]) -> None:
    error, is_pad = errors
    loss = masked_loss("adaptive", error, is_pad)
    loss.backward()
    total, gradient = 0.0, torch.zeros_like(error)
    valid_steps = (1, 4, 2)
    for row, n in enumerate(valid_steps):
        own = error.detach()[row, :n]
        weight = 1 / (own.square().mean() + 0.01)
        total += n / sum(valid_steps) * weight * own.square().mean()
        gradient[row, :n] = weight * 2 * own / (sum(valid_steps) * 2)
    torch.testing.assert_close(loss.detach(), total)
    torch.testing.assert_close(error.grad, gradient)
    assert total < 1  # for errors of any size


def test_adaptive_without_valid_steps_is_zero() -> None:
    error = torch.ones(1, 2, 3, requires_grad=True)
    is_pad = torch.ones(1, 2, dtype=torch.bool)
    assert torch.isfinite(adaptive_l2(error, is_pad)).all()
    masked_loss("adaptive", error, is_pad).backward()
    assert not error.grad.any()


@pytest.mark.parametrize("loss_type", VELOCITY_LOSS_TYPES)
def test_gradients_of_parts_add_up_to_the_batch(
    loss_type: str, errors: tuple[Tensor, Tensor]
) -> None:
    error, is_pad = errors
    (whole,) = torch.autograd.grad(masked_loss(loss_type, error, is_pad), error)
    valid_count = (~is_pad).sum() / 2  # two ranks
    losses = [
        masked_loss(loss_type, error[rows], is_pad[rows], valid_count) for rows in ([0], [1, 2])
    ]
    (parts,) = torch.autograd.grad(sum(losses) / 2, error)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_elementwise_losses_are_averaged_over_valid_steps(
    loss_type: str, errors: tuple[Tensor, Tensor]
) -> None:
    error, is_pad = errors
    square = error.square()
    losses = square if loss_type == "mse" else (1 + square).sqrt() - 1
    mean = losses[~is_pad].mean()
    torch.testing.assert_close(masked_loss(loss_type, error, is_pad), mean)


def test_an_unknown_loss_is_refused() -> None:
    with pytest.raises(ValueError, match="'huber' is unknown"):
        masked_loss("huber", torch.zeros(1, 1, 1), torch.zeros(1, 1).bool())
