"""The iMF objective: time samplers, the loss and its gradients, sampling."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from imf_ray.agents.imf import TIME_SAMPLERS, IMFVLAAgent, masked_mean, pseudo_huber

Make = Callable[..., IMFVLAAgent]
Batch = dict[str, Any]


@pytest.mark.parametrize("name", TIME_SAMPLERS)
def test_times_are_ordered_and_a_function_of_the_uniforms(name: str) -> None:
    uniforms = torch.rand(10_000, 3, generator=torch.Generator().manual_seed(0))
    uniforms[0] = 0  # torch.rand may return zero
    r, t = TIME_SAMPLERS[name](uniforms)
    assert (r <= t).all()
    assert (r >= 0).all()
    assert (t <= 1).all()
    for time, again in zip((r, t), TIME_SAMPLERS[name](uniforms), strict=True):
        assert torch.equal(time, again)
    same = (r == t).float().mean().item()
    corner = (t - r > 0.8).float().mean().item()
    if name == "uniform":
        assert same < 0.01
        assert corner == pytest.approx(0.04, abs=0.01)
    else:
        assert same == pytest.approx(0.5, abs=0.02)
        assert t.logit().median().item() == pytest.approx(0.15, abs=0.06)  # of the larger of two
        assert corner < 0.003


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


def test_a_prediction_is_one_network_call_from_one_to_zero(
    make_stub_agent: Make, batch: Batch
) -> None:
    agent = make_stub_agent()
    noise = batch["noise"]
    actions = agent.predict_action(batch, noise=noise)
    (call,) = agent.head.calls
    assert torch.equal(call["r"], torch.zeros(4))
    assert torch.equal(call["t"], torch.ones(4))
    shift = call["cond"].mean(dim=(1, 2))[:, None, None]
    torch.testing.assert_close(actions, noise - (0.5 * noise + shift))


def test_several_steps_walk_down_evenly(make_stub_agent: Make, batch: Batch) -> None:
    agent = make_stub_agent(inference_steps=4)
    agent.predict_action(batch)
    assert [call["t"][0].item() for call in agent.head.calls] == [1.0, 0.75, 0.5, 0.25]
    assert [call["r"][0].item() for call in agent.head.calls] == [0.75, 0.5, 0.25, 0.0]


def test_padded_actions_change_neither_loss_nor_gradients(
    make_stub_agent: Make, batch: Batch
) -> None:
    """The stub treats each action alone; a transformer still reads padded ones as context."""

    def loss_and_gradient(action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        agent = make_stub_agent()
        loss = agent(batch | {"action": action})
        loss.backward()
        return loss, agent.head.scale.grad

    changed = batch["action"].masked_fill(batch["action_is_pad"][..., None], 50.0)
    torch.testing.assert_close(loss_and_gradient(changed), loss_and_gradient(batch["action"]))
    valid = batch["action"].masked_fill(~batch["action_is_pad"][..., None], 50.0)
    assert loss_and_gradient(valid)[0] != loss_and_gradient(batch["action"])[0]


def test_only_u_carries_gradient(make_stub_agent: Make, batch: Batch) -> None:
    agent = make_stub_agent(loss_type="mse")
    z = batch["noise"]
    r, t = torch.zeros(4), torch.ones(4)
    cond = torch.randn(4, 2, 3, requires_grad=True)
    u, du_dt = agent._compute_u_and_du_dt(z, r, t, cond)
    direction, _ = agent.head.calls
    torch.testing.assert_close(direction["r"], t)
    assert not du_dt.requires_grad
    # u = a z + c and v = u(z, t, t), so du/dt = a v; the gradient of V by a is z alone.
    torch.testing.assert_close(du_dt, 0.5 * u)
    agent._compound_velocity(u, du_dt, r, t).sum().backward()
    torch.testing.assert_close(agent.head.scale.grad, z.sum())
    assert cond.grad is not None


def test_random_numbers_come_from_the_batch_or_from_torch(make_agent: Make, batch: Batch) -> None:
    agent = make_agent()
    assert torch.equal(agent(batch), agent(batch))
    drawn = {k: v for k, v in batch.items() if k not in ("noise", "time_uniforms")}
    assert agent(drawn) != agent(drawn)
    torch.manual_seed(3)
    first = agent(drawn)
    torch.manual_seed(3)
    assert torch.equal(agent(drawn), first)


@pytest.mark.parametrize("time_sampler", TIME_SAMPLERS)
def test_gradients_reach_every_trainable_parameter(
    make_agent: Make, batch: Batch, time_sampler: str
) -> None:
    agent = make_agent(condition="multi_token", time_sampler=time_sampler)
    agent(batch).backward()
    for name, parameter in agent.named_parameters():
        assert parameter.grad is not None or not parameter.requires_grad, name
    assert agent.vision_encoder.encoders["top"].trunk.conv1.weight.grad.any()


def test_mean_of_the_ranks_gradients_is_the_gradient_of_the_whole_batch(
    make_agent: Make, batch: Batch
) -> None:
    agent = make_agent()

    def gradient(part: Batch) -> torch.Tensor:
        agent.zero_grad()
        agent(part).backward()
        return agent.head.input_emb.weight.grad.clone()

    whole = gradient(batch)
    valid_count = (~batch["action_is_pad"]).sum() / 2
    shards = [
        {k: v[rows] for k, v in batch.items() if k != "images"}
        | {"images": {k: v[rows] for k, v in batch["images"].items()}, "valid_count": valid_count}
        for rows in ([0], [1, 2, 3])
    ]
    torch.testing.assert_close((gradient(shards[0]) + gradient(shards[1])) / 2, whole)


def test_dropout_masks_are_shared_by_both_passes(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(
        head={"n_emb": 16, "n_layer": 1, "n_head": 1, "n_kv_head": 1, "p_drop_emb": 0.5}
    ).train()
    cond, z, t = agent._build_cond(batch), batch["noise"], torch.full((4,), 0.7)
    outputs = []
    agent.head.register_forward_hook(lambda module, args, output: outputs.append(output))
    agent._compute_u_and_du_dt(z, t, t, cond)  # at r = t, u and v are the same function
    agent._compute_u_and_du_dt(z, t, t, cond)
    first_v, second_v = outputs[0], outputs[2]
    assert not torch.equal(first_v, second_v)
    torch.manual_seed(5)
    u, _ = agent._compute_u_and_du_dt(z, t, t, cond)
    torch.testing.assert_close(outputs[4], u)


def test_unknown_options_are_refused(make_agent: Make) -> None:
    with pytest.raises(ValueError, match="choose one of mse, pseudo_huber"):
        make_agent(loss_type="l1")
    with pytest.raises(ValueError, match="choose one of uniform, logit_normal"):
        make_agent(time_sampler="beta")
