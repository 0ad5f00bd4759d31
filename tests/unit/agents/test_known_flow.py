"""iMF and flow matching on data with a known flow: -1 or +1 with equal probability.

Time runs from data (t = 0) to noise (t = 1). At z = (1 - t) x + t e the mean of the data is
E[x | z] = tanh(z (1 - t) / t^2), so the flow's velocity is v = E[e - x | z] = (z - E[x | z]) / t.
In one dimension a flow keeps quantiles: it maps noise e to the sign of e.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imf_ray.agents.flow import FlowVLAAgent
from imf_ray.agents.imf import IMFVLAAgent
from imf_ray.agents.velocity import VelocityAgent

INTEGRATION_STEPS = 600
NOISE = torch.tensor([-2.5, -1.0, -0.4, -0.15, 0.15, 0.4, 1.0, 2.5], dtype=torch.float64)


def posterior_mean(z: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(z * (1 - t) / t**2)


def velocity(z: Tensor, t: Tensor) -> Tensor:
    return (z - posterior_mean(z, t)) / t


def flow_to(z: Tensor, t: Tensor, r: Tensor, steps: int = INTEGRATION_STEPS) -> Tensor:
    """Integrate the flow from z at time t to time r by midpoint steps, never evaluated at t = 0."""
    step = (t - r) / steps
    for i in range(steps):
        now = t - i * step
        middle = z - step / 2 * velocity(z, now)
        z = z - step * velocity(middle, now - step / 2)
    return z


def average_velocity(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    """u(z, r, t) = (z_t - z_r) / (t - r), and v(z, t) where r = t."""
    length = torch.where(t > r, t - r, 1.0)
    return torch.where(t > r, (z - flow_to(z, t, r)) / length, velocity(z, t))


class KnownHead(nn.Module):
    """The known average velocity as an agent's head."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.average_velocity: Callable[[Tensor, Tensor, Tensor], Tensor] = average_velocity
        self.prediction_type = "velocity"

    def forward(self, sample: Tensor, r: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        r, t = (time[:, None, None] for time in (r, t))
        u = self.average_velocity(sample, r, t)
        return u if self.prediction_type == "velocity" else sample - t * u


def make(agent_class: type[VelocityAgent] = IMFVLAAgent, **options: Any) -> Any:
    agent = agent_class(
        action_dim=1,
        state_dim=1,
        camera_names=(),
        obs_horizon=1,
        pred_horizon=1,
        num_action_steps=1,
        head_factory=KnownHead,
        **options,
    )
    agent.head.prediction_type = agent.prediction_type
    return agent.double()


def sampled(agent: VelocityAgent, noise: Tensor) -> Tensor:
    obs = {"qpos": torch.zeros(len(noise), 1, 1, dtype=torch.float64)}
    return agent.predict_action(obs, noise=noise[:, None, None])[:, 0, 0]


def compound_velocity(agent: IMFVLAAgent, z: Tensor, r: Tensor, t: Tensor) -> Tensor:
    z, cond = z[:, None, None], torch.zeros(len(z), 1, 1, dtype=torch.float64)
    u, du_dt = agent._compute_u_and_du_dt(z, r, t, cond)
    return agent._compound_velocity(u, du_dt, r, t)[:, 0, 0]


@pytest.mark.parametrize("prediction_type", ["velocity", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_any_number_of_steps_with_the_true_average_velocity_is_exact(
    steps: int, prediction_type: str
) -> None:
    agent = make(inference_steps=steps, prediction_type=prediction_type)
    torch.testing.assert_close(sampled(agent, NOISE), NOISE.sign(), rtol=0, atol=2e-3)


@pytest.mark.parametrize("prediction_type", ["velocity", "sample"])
def test_the_compound_velocity_of_the_true_u_has_no_expected_error(prediction_type: str) -> None:
    agent = make(prediction_type=prediction_type)
    r = torch.tensor([0.0, 0.1, 0.3, 0.5, 0.0, 0.6, 0.25, 0.0], dtype=torch.float64)
    t = torch.tensor([1.0, 0.9, 0.5, 0.5, 0.6, 1.0, 0.75, 0.3], dtype=torch.float64)
    z = NOISE * 0.8
    estimate = compound_velocity(agent, z, r, t)
    # E[V - v*] given z: the mean over both x that may have led to z.
    plus = torch.sigmoid(2 * z * (1 - t) / t**2)
    expected = sum(
        probability * (estimate - ((z - (1 - t) * x) / t - x))
        for x, probability in ((1.0, plus), (-1.0, 1 - plus))
    )
    torch.testing.assert_close(expected, torch.zeros_like(z), rtol=0, atol=2e-3)

    agent.head.average_velocity = lambda z, r, t: velocity(z, t)  # correct only at r = t
    wrong = compound_velocity(agent, z, r, t) - velocity(z, t)
    assert wrong[(r < t) & (t > 0.3)].abs().min() > 0.1  # at t = 0.3 and z = 2 paths are straight
    assert wrong[r == t].abs().max() < 1e-12


def test_the_error_of_one_step_is_the_mean_error_of_the_compound_velocity_at_r_zero() -> None:
    """Along a path d/dt [t u(z_t, 0, t)] = V(z_t, 0, t), the reason for `endpoint_mix`."""
    agent = make()
    agent.head.average_velocity = lambda z, r, t: (
        average_velocity(z, r, t) + 0.3 * (t - r) * torch.cos(3 * t + z)
    )
    t = (torch.arange(200, dtype=torch.float64) + 0.5) / 200
    for e in NOISE[4:6]:
        path = flow_to(e.expand_as(t), torch.ones_like(t), t)
        errors = compound_velocity(agent, path, torch.zeros_like(t), t) - velocity(path, t)
        error = (sampled(agent, e[None]) - e.sign()).item()
        assert error == pytest.approx(-errors.mean().item(), abs=2e-3)
        assert abs(error) > 0.05


def test_flow_matching_needs_many_steps() -> None:
    agent = make(FlowVLAAgent, inference_steps=1)
    torch.testing.assert_close(
        sampled(agent, NOISE), torch.zeros_like(NOISE)
    )  # the mean of the data
    agent.inference_steps = 40
    torch.testing.assert_close(sampled(agent, NOISE), NOISE.sign(), rtol=0, atol=1e-6)
