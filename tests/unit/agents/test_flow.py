"""Flow matching: the loss by hand, no derivative, Euler steps against the exact flow."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imf_ray.agents.flow import FlowVLAAgent
from imf_ray.agents.pretrained import make_agent
from imf_ray.config import load_config
from imf_ray.errors import UserError

Batch = dict[str, Any]
MEAN, DEVIATION = 0.3, 0.2


class GaussianHead(nn.Module):
    """E[e - x | z_t] of actions distributed as N(MEAN, DEVIATION^2), for any condition."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def forward(self, sample: Tensor, r: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.calls.append((r, t))
        t = t[:, None, None]
        variance = ((1 - t) * DEVIATION) ** 2 + t**2
        slope = (t - (1 - t) * DEVIATION**2) / variance
        return -MEAN + slope * (sample - (1 - t) * MEAN)


@pytest.fixture
def make_flow(make_agent: Callable[..., Any]) -> Callable[..., FlowVLAAgent]:
    def make(**options: Any) -> FlowVLAAgent:
        stub = {"head": {}, "head_factory": GaussianHead} if "head" not in options else {}
        return make_agent(agent_class=FlowVLAAgent, camera_names=(), **stub, **options)

    return make


@pytest.mark.parametrize("prediction_type", ["velocity", "sample"])
@pytest.mark.parametrize("time_sampler", ["uniform", "beta"])
def test_the_loss_by_hand(
    make_flow: Callable[..., FlowVLAAgent], batch: Batch, prediction_type: str, time_sampler: str
) -> None:
    agent = make_flow(
        loss_type="mse", prediction_type=prediction_type, time_sampler=time_sampler
    ).double()
    batch["time_uniforms"] = batch["time_uniforms"].clamp(0.1, 0.9)
    total = 0.0
    for row in range(4):
        x, e = batch["action"][row].double(), batch["noise"][row].double()
        t = batch["time_uniforms"][row, 0].double() ** (1 if time_sampler == "uniform" else 2 / 3)
        z = (1 - t) * x + t * e
        prediction = GaussianHead()(z[None], t[None], t[None], z)[0]
        v = prediction if prediction_type == "velocity" else (z - prediction) / t
        error = (v - (e - x))[~batch["action_is_pad"][row]]
        total += error.square().sum().item()
    expected = total / (~batch["action_is_pad"]).sum().item() / 16
    assert agent(batch).item() == pytest.approx(expected, rel=1e-5)


def test_the_loss_uses_no_derivative_and_one_network_call(
    make_flow: Callable[..., FlowVLAAgent], batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(torch.func, "jvp")
    agent = make_flow()
    agent(batch)
    ((r, t),) = agent.head.calls
    assert torch.equal(r, t) and torch.equal(t, batch["time_uniforms"][:, 0])


def test_a_step_evaluates_the_velocity_at_its_start(
    make_flow: Callable[..., FlowVLAAgent], batch: Batch
) -> None:
    agent = make_flow(inference_steps=4)
    agent.predict_action(batch, noise=batch["noise"])
    assert [t[0].item() for _, t in agent.head.calls] == [1.0, 0.75, 0.5, 0.25]
    assert all(torch.equal(r, t) and t.shape == (4,) for r, t in agent.head.calls)


def test_euler_converges_to_the_exact_flow_with_first_order(
    make_flow: Callable[..., FlowVLAAgent], batch: Batch
) -> None:
    """Between Gaussians the exact flow keeps a point's distance to the mean in deviations."""
    agent = make_flow().double()
    noise = batch["noise"].double()
    exact = MEAN + DEVIATION * noise
    assert agent.inference_steps == 10
    errors = {}
    for steps in (1, 10, 50, 100):
        agent.inference_steps = steps
        errors[steps] = (agent.predict_action(batch, noise=noise) - exact).abs().max().item()
    one_step = DEVIATION * noise.abs().max().item()  # one step ends at the mean of the data
    assert errors[1] == pytest.approx(one_step, rel=1e-5)
    assert errors[50] / errors[100] == pytest.approx(2, abs=0.15)
    assert errors[100] < 0.05


def test_gradients_reach_every_parameter_of_the_head(
    make_flow: Callable[..., FlowVLAAgent], batch: Batch
) -> None:
    agent = make_flow(head={"n_emb": 16, "n_layer": 1, "n_head": 1, "n_kv_head": 1})
    agent(batch).backward()
    for name, parameter in agent.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name


def test_impossible_options_are_refused(make_flow: Callable[..., FlowVLAAgent]) -> None:
    with pytest.raises(ValueError, match="'endpoint_mix' is unknown; choose one of uniform"):
        make_flow(time_sampler="endpoint_mix")
    with pytest.raises(UserError, match=r"requires agent\.objective=imf, but it is flow"):
        load_config(["agent=resnet_flow_attnres", "agent.aux_v_head=true"])


def test_the_agent_group_is_flow_matching_in_ten_steps() -> None:
    config = load_config(["agent=resnet_flow_attnres", "agent.head.n_layer=1"])
    agent = make_agent(config.agent, "joint")
    assert type(agent) is FlowVLAAgent
    assert agent.inference_steps == 10
