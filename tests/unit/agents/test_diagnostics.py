"""Diagnostics agree with computations by hand and have no side effects."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from imf_ray.agents.diagnostics import residual_attention_weights, velocity_diagnostics
from imf_ray.agents.flow import FlowVLAAgent
from imf_ray.agents.imf import IMFVLAAgent

Make = Callable[..., IMFVLAAgent]
Batch = dict[str, Any]
HEAD = {"n_emb": 16, "n_layer": 2, "n_head": 1, "n_kv_head": 1, "p_drop_emb": 0, "p_drop_attn": 0}
STATE_ONLY: dict[str, Any] = {"camera_names": (), "head": HEAD}


def rms(rows: list[torch.Tensor]) -> float:
    """Root mean square of all numbers."""
    return torch.cat([row.flatten() for row in rows]).square().mean().sqrt().item()


def test_velocities_by_length_of_the_interval(make_stub_agent: Make, batch: Batch) -> None:
    agent = make_stub_agent(camera_names=())
    t = torch.tensor([0.5, 0.9, 0.95, 1.0])
    r = torch.tensor([0.5, 0.2, 0.1, 0.25])
    batch["time_uniforms"] = torch.stack((r, t, t), dim=-1)
    metrics = velocity_diagnostics(agent, batch)
    du_dts, errors = [], []
    for row in range(4):
        x, e = batch["action"][row], batch["noise"][row]
        u = 0.5 * ((1 - t[row]) * x + t[row] * e) + batch["qpos"][row].mean()
        # u = z / 2 + c and v = u, so du/dt = u / 2.
        valid = ~batch["action_is_pad"][row]
        du_dts.append((u / 2)[valid])
        errors.append((u + (t[row] - r[row]) * u / 2 - (e - x))[valid])
    buckets = {"same": [0], "0.6-0.8": [1, 3], "0.8-1.0": [2]}
    expected = {}
    for bucket, rows in buckets.items():
        expected[f"du_dt/{bucket}"] = rms([du_dts[row] for row in rows])
        expected[f"velocity_error/{bucket}"] = rms([errors[row] for row in rows])
    assert metrics == pytest.approx(expected, rel=1e-5)


def test_buckets_without_valid_actions_are_omitted(make_stub_agent: Make, batch: Batch) -> None:
    batch["action_is_pad"][:] = True
    assert velocity_diagnostics(make_stub_agent(camera_names=()), batch) == {}


def test_flow_matching_has_one_bucket(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(agent_class=FlowVLAAgent, **STATE_ONLY, loss_type="mse")
    metrics = velocity_diagnostics(agent, batch)
    assert set(metrics) == {"du_dt/same", "velocity_error/same"}
    assert metrics["velocity_error/same"] ** 2 == pytest.approx(agent(batch).item(), rel=1e-5)


@pytest.mark.parametrize("aux_v_head", [False, True])
def test_the_buckets_add_up_to_the_loss(make_agent: Make, batch: Batch, aux_v_head: bool) -> None:
    agent = make_agent(
        **STATE_ONLY, aux_v_head=aux_v_head, loss_type="mse", noise_samples_per_obs=3
    )
    batch["action_is_pad"][:] = False
    batch["noise"] = torch.randn(4, 3, 16, 16)
    batch["time_uniforms"] = torch.rand(4, 3, 3)
    metrics = velocity_diagnostics(agent, batch)
    first, last = batch["time_uniforms"][..., 0], batch["time_uniforms"][..., 1]
    length = (first - last).abs()
    total = 0.0
    for name, value in metrics.items():
        if name.startswith("velocity_error/"):
            low, high = (float(x) for x in name.removeprefix("velocity_error/").split("-"))
            total += ((length > low) & (length <= high)).sum().item() * value**2
    mean = total / 12
    if aux_v_head:
        assert mean < agent(batch).item()  # which also contains the error of v
    else:
        assert mean == pytest.approx(agent(batch).item(), rel=1e-5)


def test_diagnostics_have_no_side_effects(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(camera_names=(), head=HEAD | {"p_drop_emb": 0.5}).train()
    before = {name: value.clone() for name, value in agent.state_dict().items()}
    state = torch.get_rng_state()
    velocity_diagnostics(agent, batch)
    residual_attention_weights(agent, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module._forward_pre_hooks for module in agent.modules())
    assert all(torch.equal(value, before[name]) for name, value in agent.state_dict().items())
    assert all(parameter.grad is None for parameter in agent.parameters())


def test_initial_weights_are_equal(make_agent: Make, batch: Batch) -> None:
    weights = residual_attention_weights(make_agent(**STATE_ONLY), batch)
    expected = torch.ones(4, 4).tril() / torch.arange(1, 5)[:, None]
    torch.testing.assert_close(weights, expected.double())


@pytest.mark.parametrize("steps", [1, 2])
def test_the_weights_by_hand(make_agent: Make, batch: Batch, steps: int) -> None:
    agent = make_agent(**STATE_ONLY, inference_steps=steps)
    layers = list(agent.head.attnres_backbone.layers)
    for layer in layers:
        torch.nn.init.normal_(layer.attn_res.pseudo_query)
    tokens, outputs = [], [[] for _ in layers]
    hooks = [agent.head.drop.register_forward_hook(lambda _, __, y: tokens.append(y))]
    for layer, layer_outputs in zip(layers, outputs, strict=True):
        hooks.append(
            layer.register_forward_hook(lambda _, __, y, outputs=layer_outputs: outputs.append(y))
        )
    weights = residual_attention_weights(agent, {**batch, "noise": batch["noise"][:, None]})
    for hook in hooks:
        hook.remove()

    assert len(tokens) == steps
    sources = [torch.cat(tokens), *(torch.cat(calls) for calls in outputs)]
    for i, layer in enumerate(layers):
        stacked = torch.stack(sources[: i + 1], dim=-1)  # (B, T, dim, sources)
        keys = stacked / (stacked.square().mean(dim=2, keepdim=True) + 1e-6).sqrt()
        logits = torch.einsum("d,btds->bts", layer.attn_res.pseudo_query, keys)
        expected = logits.softmax(dim=-1).mean(dim=(0, 1)).detach()
        torch.testing.assert_close(weights[i, : i + 1].float(), expected)
        assert not weights[i, i + 1 :].any()
    assert weights[1:].max() > 0.5


def test_a_head_without_attention_residuals_is_refused(make_stub_agent: Make, batch: Batch) -> None:
    with pytest.raises(ValueError, match="StubHead has no attention residuals"):
        residual_attention_weights(make_stub_agent(camera_names=()), batch)
