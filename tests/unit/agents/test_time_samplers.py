"""Time samplers of iMF and flow matching agree with their distributions."""

import math
from collections.abc import Callable
from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from imf_ray.agents.flow import SINGLE_TIME_SAMPLERS
from imf_ray.agents.imf import TIME_SAMPLERS

LENGTHS = (0.0, 0.05, 0.2, 0.5, 0.8, 0.95)
NORMAL = NormalDist()
SAMPLERS = {f"interval {name}": f for name, f in TIME_SAMPLERS.items()} | {
    f"single {name}": f for name, f in SINGLE_TIME_SAMPLERS.items()
}


@pytest.fixture(scope="module")
def uniforms() -> Tensor:
    """Quasi-random points of the unit cube, which estimate a probability to about 1e-3."""
    points = torch.quasirandom.SobolEngine(3, scramble=True, seed=0).draw(2**15)
    return points.clamp(1e-6, 1 - 1e-6)


def logit_normal_cdf(x: float, mean: float, std: float) -> float:
    if not 0 < x < 1:
        return float(x >= 1)
    return NORMAL.cdf((math.log(x / (1 - x)) - mean) / std)


def p_longer(length: float, first: tuple[float, float], second: tuple[float, float]) -> float:
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
    "logit_normal": lambda d: 0.5 * p_longer(d, PAPER, PAPER),
    "meanflow_v1": lambda d: p_longer(d, (-4.0, 1.6), (-0.6, 1.6)),
    "endpoint_mix": lambda d: 0.25 * ((1 - d) + 1 + (1 - d) ** 2),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_times_are_ordered_and_depend_only_on_their_own_uniforms(
    name: str, uniforms: Tensor
) -> None:
    uniforms = torch.cat((uniforms, torch.zeros(1, 3)))  # torch.rand can return zero
    r, t = SAMPLERS[name](uniforms)
    assert (r <= t).all()
    assert (r >= 0).all()
    assert (t <= 1).all()
    half = SAMPLERS[name](uniforms[::2])
    assert torch.equal(half[0], r[::2]) and torch.equal(half[1], t[::2])


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_the_distribution_of_interval_lengths(name: str, uniforms: Tensor) -> None:
    r, t = TIME_SAMPLERS[name](uniforms)
    for length in LENGTHS:
        fraction = (t - r > length).double().mean().item()
        assert fraction == pytest.approx(LONGER[name](length), abs=2e-3), length


@pytest.mark.parametrize(
    ("name", "long", "equal"),
    [
        ("uniform", 0.04, 0.0),
        ("logit_normal", 5e-4, 0.5),
        ("meanflow_v1", 0.081, 0.0),
        ("endpoint_mix", 0.31, 0.25),
    ],
)
def test_the_probabilities_in_the_docstrings(
    name: str, long: float, equal: float, uniforms: Tensor
) -> None:
    assert LONGER[name](0.8) == pytest.approx(long, rel=0.02)
    r, t = TIME_SAMPLERS[name](uniforms)
    assert (r == t).double().mean().item() == pytest.approx(equal, abs=1e-3)


def test_meanflow_v1_sorts_two_different_logit_normals(uniforms: Tensor) -> None:
    r, t = TIME_SAMPLERS["meanflow_v1"](uniforms)
    for x in (0.02, 0.1, 0.5):
        early, late = logit_normal_cdf(x, -4.0, 1.6), logit_normal_cdf(x, -0.6, 1.6)
        assert (t < x).double().mean().item() == pytest.approx(early * late, abs=2e-3)
        expected = 1 - (1 - early) * (1 - late)
        assert (r < x).double().mean().item() == pytest.approx(expected, abs=2e-3)


def test_endpoint_mix_is_a_mixture_of_four(uniforms: Tensor) -> None:
    r, t = TIME_SAMPLERS["endpoint_mix"](uniforms)
    equal, endpoint, r_zero = r == t, (r == 0) & (t == 1), (r == 0) & (t < 1)
    rest = ~(equal | endpoint | r_zero)
    for part in (equal, endpoint, r_zero, rest):
        assert part.double().mean().item() == pytest.approx(0.25, abs=1e-3)
    for x in (0.1, 0.5, 0.9):
        for times in (t[equal], t[r_zero]):
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
def test_the_distribution_of_single_times(
    name: str, cdf: Callable[[float], float], uniforms: Tensor
) -> None:
    r, t = SINGLE_TIME_SAMPLERS[name](uniforms)
    assert torch.equal(r, t)
    for x in (0.05, 0.3, 0.6, 0.95):
        assert (t < x).double().mean().item() == pytest.approx(cdf(x), abs=1e-3)
