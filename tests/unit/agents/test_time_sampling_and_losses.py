"""Time samplers against their distributions, losses against what they stand for."""

import math
from collections.abc import Callable
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from imf_ray.agents.losses import (
    LOSS_TYPES,
    VELOCITY_LOSS_TYPES,
    adaptive_l2,
    masked_mean,
    pseudo_huber,
    velocity_loss,
)
from imf_ray.agents.time_sampling import SINGLE_TIME_SAMPLERS, TIME_SAMPLERS

LENGTHS = (0.0, 0.05, 0.2, 0.5, 0.8, 0.95)
NORMAL = NormalDist()
SAMPLERS = {f"interval {name}": f for name, f in TIME_SAMPLERS.items()} | {
    f"instant {name}": f for name, f in SINGLE_TIME_SAMPLERS.items()
}


@pytest.fixture(scope="module")
def uniforms() -> Tensor:
    """Evenly spread points of the cube, which estimate a probability to about 1e-3."""
    points = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(2**15)
    return points.clamp(1e-6, 1 - 1e-6)


def logit_normal_cdf(x: float, mean: float, std: float) -> float:
    if not 0 < x < 1:
        return float(x >= 1)
    return NORMAL.cdf((math.log(x / (1 - x)) - mean) / std)


def farther_apart(length: float, first: tuple[float, float], second: tuple[float, float]) -> float:
    """P(|a - b| > length) of two independent logit-normals, by the midpoint rule."""
    total, count = 0.0, 4000
    for i in range(count):
        z = NORMAL.inv_cdf((i + 0.5) / count)
        a = 1 / (1 + math.exp(-(z * first[1] + first[0])))
        above = 1 - logit_normal_cdf(a + length, *second)
        total += above + logit_normal_cdf(a - length, *second)
    return total / count


PAPER = (-0.4, 1.0)
LONGER: dict[str, Callable[[float], float]] = {
    "uniform": lambda d: (1 - d) ** 2,
    "logit_normal": lambda d: 0.5 * farther_apart(d, PAPER, PAPER),
    "meanflow_v1": lambda d: farther_apart(d, (-4.0, 1.6), (-0.6, 1.6)),
    "endpoint_mix": lambda d: 0.25 * ((1 - d) + 1 + (1 - d) ** 2),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_times_are_ordered_and_a_function_of_the_uniforms(name: str, uniforms: Tensor) -> None:
    uniforms = torch.cat((uniforms, torch.zeros(1, 3)))  # torch.rand may return zero
    r, t = SAMPLERS[name](uniforms)
    assert (r <= t).all()
    assert (r >= 0).all()
    assert (t <= 1).all()
    half = SAMPLERS[name](uniforms[::2])
    assert torch.equal(half[0], r[::2]) and torch.equal(half[1], t[::2])


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_lengths_of_intervals_have_their_distribution(name: str, uniforms: Tensor) -> None:
    r, t = TIME_SAMPLERS[name](uniforms)
    for length in LENGTHS:
        share = (t - r > length).double().mean().item()
        assert share == pytest.approx(LONGER[name](length), abs=2e-3), length


@pytest.mark.parametrize(
    ("name", "far", "same"),
    [
        ("uniform", 0.04, 0.0),
        ("logit_normal", 5e-4, 0.5),
        ("meanflow_v1", 0.081, 0.0),
        ("endpoint_mix", 0.31, 0.25),
    ],
)
def test_the_shares_that_docstrings_state(
    name: str, far: float, same: float, uniforms: Tensor
) -> None:
    assert LONGER[name](0.8) == pytest.approx(far, rel=0.02)
    r, t = TIME_SAMPLERS[name](uniforms)
    assert (r == t).double().mean().item() == pytest.approx(same, abs=1e-3)


def test_which_of_the_two_logit_normals_is_the_later_time(uniforms: Tensor) -> None:
    r, t = TIME_SAMPLERS["meanflow_v1"](uniforms)
    for x in (0.02, 0.1, 0.5):
        early, late = logit_normal_cdf(x, -4.0, 1.6), logit_normal_cdf(x, -0.6, 1.6)
        assert (t < x).double().mean().item() == pytest.approx(early * late, abs=2e-3)
        expected = 1 - (1 - early) * (1 - late)
        assert (r < x).double().mean().item() == pytest.approx(expected, abs=2e-3)


def test_corner_is_a_mixture_of_four(uniforms: Tensor) -> None:
    r, t = TIME_SAMPLERS["endpoint_mix"](uniforms)
    same, point, edge = r == t, (r == 0) & (t == 1), (r == 0) & (t < 1)
    rest = ~(same | point | edge)
    for part in (same, point, edge, rest):
        assert part.double().mean().item() == pytest.approx(0.25, abs=1e-3)
    for x in (0.1, 0.5, 0.9):
        for times in (t[same], t[edge]):
            assert (times < x).double().mean().item() == pytest.approx(x, abs=5e-3)
        assert (t[rest] < x).double().mean().item() == pytest.approx(x**2, abs=5e-3)


@pytest.mark.parametrize(
    ("name", "cdf"),
    [
        ("uniform", lambda x: x),
        ("logit_normal", lambda x: logit_normal_cdf(x, *PAPER)),
        ("beta", lambda x: x**1.5),
    ],
)
def test_instants_have_their_distribution(
    name: str, cdf: Callable[[float], float], uniforms: Tensor
) -> None:
    r, t = SINGLE_TIME_SAMPLERS[name](uniforms)
    assert torch.equal(r, t)
    for x in (0.05, 0.3, 0.6, 0.95):
        assert (t < x).double().mean().item() == pytest.approx(cdf(x), abs=1e-3)


def test_pseudo_huber_is_quadratic_then_linear() -> None:
    torch.testing.assert_close(
        pseudo_huber(torch.tensor([0.0, 1e-2, -1e4])),
        torch.tensor([0.0, 5e-5, 1e4 - 1]),
        rtol=1e-2,
        atol=1e-6,
    )


def test_masked_mean() -> None:
    losses = torch.tensor([[[1.0, 3.0], [100.0, float("inf")]]])
    is_pad = torch.tensor([[False, True]])
    assert masked_mean(losses, is_pad) == 2
    assert masked_mean(losses, is_pad, valid_count=torch.tensor(0.5)) == 4
    assert masked_mean(losses, torch.tensor([[True, True]])) == 0


@pytest.fixture
def errors() -> tuple[Tensor, Tensor]:
    """Errors (3, 4, 2) of three sizes; of the first one step is valid, of the second all."""
    scale = torch.tensor([0.01, 0.3, 10.0], dtype=torch.float64)[:, None, None]
    error = torch.randn(3, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    is_pad = torch.tensor([[False, True, True, True], [False] * 4, [False, False, True, True]])
    return (error * scale).requires_grad_(), is_pad


def test_adaptive_weights_each_sample_by_its_own_error(errors: tuple[Tensor, Tensor]) -> None:
    error, is_pad = errors
    loss = velocity_loss("adaptive", error, is_pad)
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
    assert total < 1  # however large an error is


def test_adaptive_without_valid_steps_is_zero() -> None:
    error = torch.ones(1, 2, 3, requires_grad=True)
    is_pad = torch.ones(1, 2, dtype=torch.bool)
    assert torch.isfinite(adaptive_l2(error, is_pad)).all()
    velocity_loss("adaptive", error, is_pad).backward()
    assert not error.grad.any()


@pytest.mark.parametrize("loss_type", VELOCITY_LOSS_TYPES)
def test_parts_of_a_batch_add_up(loss_type: str, errors: tuple[Tensor, Tensor]) -> None:
    error, is_pad = errors
    (whole,) = torch.autograd.grad(velocity_loss(loss_type, error, is_pad), error)
    valid_count = (~is_pad).sum() / 2  # of two ranks
    losses = [
        velocity_loss(loss_type, error[rows], is_pad[rows], valid_count) for rows in ([0], [1, 2])
    ]
    (parts,) = torch.autograd.grad(sum(losses) / 2, error)
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("loss_type", LOSS_TYPES)
def test_other_losses_are_of_each_number(loss_type: str, errors: tuple[Tensor, Tensor]) -> None:
    error, is_pad = errors
    mean = LOSS_TYPES[loss_type](error)[~is_pad].mean()
    torch.testing.assert_close(velocity_loss(loss_type, error, is_pad), mean)
