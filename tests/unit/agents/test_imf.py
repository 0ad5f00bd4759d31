"""The iMF objective: the loss, its gradients and derivatives, and sampling."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from imf_ray.agents.ddpm import DDPMVLAAgent
from imf_ray.agents.flow import FlowVLAAgent
from imf_ray.agents.imf import TIME_SAMPLERS, IMFVLAAgent
from imf_ray.agents.losses import VELOCITY_LOSS_TYPES

Make = Callable[..., IMFVLAAgent]
Batch = dict[str, Any]
HEAD = {"n_emb": 16, "n_layer": 1, "n_head": 1, "n_kv_head": 1, "p_drop_emb": 0, "p_drop_attn": 0}
ENDPOINT_SAMPLE = {"prediction_type": "sample", "time_sampler": "endpoint_mix"}
STATE_ONLY: dict[str, Any] = {"camera_names": (), "head": HEAD}


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


def test_a_predicted_sample_is_the_chunk(make_stub_agent: Make, batch: Batch) -> None:
    agent = make_stub_agent(prediction_type="sample")
    x = torch.linspace(-1, 1, 16).expand(4, 16, 16)
    agent.head.forward = lambda sample, r, t, cond: x.clone()
    torch.testing.assert_close(agent.predict_action(batch, noise=batch["noise"]), x)
    # With the truth as prediction, u = (z_t - x) / t is the velocity e - x everywhere.
    uniforms = torch.rand(4, 3).clamp(0.1, 0.9)
    exact = {**batch, "action": x, "time_uniforms": uniforms}
    assert agent.compute_loss(exact).item() < 1e-10


def test_several_steps_have_equal_length(make_stub_agent: Make, batch: Batch) -> None:
    agent = make_stub_agent(inference_steps=4)
    agent.predict_action(batch)
    assert [call["t"][0].item() for call in agent.head.calls] == [1.0, 0.75, 0.5, 0.25]
    assert [call["r"][0].item() for call in agent.head.calls] == [0.75, 0.5, 0.25, 0.0]


def test_padded_actions_change_neither_loss_nor_gradients(
    make_stub_agent: Make, batch: Batch
) -> None:
    """The stub treats each action by itself; a transformer reads padded ones as context."""

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


def test_noise_and_times_come_from_the_batch_or_from_torch(make_agent: Make, batch: Batch) -> None:
    agent = make_agent()
    assert torch.equal(agent(batch), agent(batch))
    drawn = {k: v for k, v in batch.items() if k not in ("noise", "time_uniforms")}
    assert agent(drawn) != agent(drawn)
    torch.manual_seed(3)
    first = agent(drawn)
    torch.manual_seed(3)
    assert torch.equal(agent(drawn), first)


@pytest.mark.parametrize(
    "options",
    [
        *({"time_sampler": name} for name in TIME_SAMPLERS),
        *({"loss_type": name} for name in VELOCITY_LOSS_TYPES),
        {"prediction_type": "sample"},
        {"aux_v_head": True},
    ],
    ids=str,
)
def test_gradients_reach_every_trainable_parameter(
    make_agent: Make, batch: Batch, options: dict[str, Any]
) -> None:
    agent = make_agent(conditioning="multi_token", **options)
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


@pytest.mark.parametrize("aux_v_head", [False, True])
@pytest.mark.parametrize("prediction_type", ["velocity", "sample"])
def test_the_derivative_agrees_with_finite_differences(
    make_agent: Make, batch: Batch, prediction_type: str, aux_v_head: bool
) -> None:
    """Also at (r, t) = (0, 1) and r = t = 0, where the difference uses times outside [0, 1]."""
    agent = make_agent(**STATE_ONLY, prediction_type=prediction_type, aux_v_head=aux_v_head)
    agent.double()
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    z, cond = batch["noise"].double(), batch["qpos"].double()
    r = torch.tensor([0.0, 0.0, 0.4, 0.1]).double()
    t = torch.tensor([1.0, 0.0, 0.4, 0.7]).double()
    v = agent._average_velocity(z, t, t, cond).detach()
    aux_v = None
    if aux_v_head:
        aux_v = agent._aux_velocity(z, t, cond)
        assert not torch.allclose(v, aux_v)
        v = aux_v.detach()
    u, du_dt = agent._compute_u_and_du_dt(z, r, t, cond, aux_v)
    torch.testing.assert_close(u, agent._average_velocity(z, r, t, cond))
    assert u.requires_grad and not du_dt.requires_grad
    h = 1e-6
    ahead, behind = (agent._average_velocity(z + s * h * v, r, t + s * h, cond) for s in (1, -1))
    torch.testing.assert_close(du_dt, (ahead - behind).detach() / (2 * h), rtol=1e-6, atol=1e-6)


def test_the_aux_head_learns_v_and_steers_the_derivative(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(**STATE_ONLY, aux_v_head=True, loss_type="mse")
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    batch["action_is_pad"][:] = False
    x, e, uniforms = batch["action"], batch["noise"], batch["time_uniforms"]
    r, t = uniforms[:, 0].minimum(uniforms[:, 1]), uniforms[:, 0].maximum(uniforms[:, 1])
    z = (1 - t[:, None, None]) * x + t[:, None, None] * e
    cond, norm, output = batch["qpos"], agent.aux_v_head[0], agent.aux_v_head[1]
    features = agent.head.features(z, t, t, cond)
    v = output(features * (features.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * norm.weight)
    tangents = (v.detach(), torch.zeros(4), torch.ones(4))
    u, du_dt = torch.func.jvp(lambda *args: agent.head(*args, cond), (z, r, t), tangents)
    compound = u + (t - r)[:, None, None] * du_dt.detach()
    expected = (compound - (e - x)).square().mean() + (v - (e - x)).square().mean()
    torch.testing.assert_close(agent(batch), expected)
    (theirs,) = torch.autograd.grad(expected, output.weight, retain_graph=True)
    agent(batch).backward()
    torch.testing.assert_close(output.weight.grad, theirs)
    (alone,) = torch.autograd.grad((v - (e - x)).square().mean(), output.weight)
    torch.testing.assert_close(theirs, alone)  # V gives it none


def test_the_aux_head_adds_parameters_and_does_not_change_inference(
    make_agent: Make, batch: Batch
) -> None:
    plain, aux = make_agent(), make_agent(aux_v_head=True)
    own = {"aux_v_head.0.weight", "aux_v_head.1.weight", "aux_v_head.1.bias"}
    assert set(aux.state_dict()) == set(plain.state_dict()) | own
    aux.load_state_dict(plain.state_dict(), strict=False)
    actions = (agent.predict_action(batch, noise=batch["noise"]) for agent in (plain, aux))
    assert torch.equal(*actions)
    decay = {id(p): g["weight_decay"] for g in aux.get_optim_groups(0.1) for p in g["params"]}
    decays = {name: decay[id(p)] for name, p in aux.named_parameters() if name in own}
    assert decays == {
        "aux_v_head.0.weight": 0.0,
        "aux_v_head.1.weight": 0.1,
        "aux_v_head.1.bias": 0.0,
    }


def test_dropout_masks_are_shared_with_the_aux_head(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(**STATE_ONLY | {"head": HEAD | {"p_drop_emb": 0.5}}, aux_v_head=True)
    masks = []
    agent.head.drop.register_forward_hook(lambda module, args, output: masks.append(output == 0))
    agent.train()(batch)
    assert masks[0].any() and torch.equal(*masks)


def test_an_aux_head_needs_features(make_stub_agent: Make) -> None:
    with pytest.raises(ValueError, match="StubHead does not have; set aux_v_head=False"):
        make_stub_agent(aux_v_head=True)


@pytest.mark.parametrize("with_count", [False, True])
@pytest.mark.parametrize("agent_class", [IMFVLAAgent, FlowVLAAgent, DDPMVLAAgent])
def test_noise_samples_of_an_observation_are_averaged(
    make_agent: Make, batch: Batch, agent_class: type[IMFVLAAgent], with_count: bool
) -> None:
    agent = make_agent(agent_class=agent_class, head=HEAD, noise_samples_per_obs=3)
    batch["noise"] = torch.randn(4, 3, 16, 16)
    batch["time_uniforms"] = torch.rand(4, 3, 3)
    if with_count:
        batch["valid_count"] = torch.tensor(11.0)
    encoded = []
    agent.vision_encoder.encoders["top"].register_forward_hook(lambda *_: encoded.append(0))
    together = agent(batch)
    together.backward()
    gradient = agent.head.input_emb.weight.grad.clone()
    assert len(encoded) == 1

    agent.zero_grad()
    agent.noise_samples_per_obs = 1
    alone = [
        agent(batch | {key: batch[key][:, draw] for key in ("noise", "time_uniforms")})
        for draw in range(3)
    ]
    mean = sum(alone) / 3
    mean.backward()
    torch.testing.assert_close(together, mean)
    torch.testing.assert_close(gradient, agent.head.input_emb.weight.grad)
    assert alone[0] != alone[1]


def test_missing_noise_samples_come_from_torch(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(**STATE_ONLY, noise_samples_per_obs=2)
    rows = []
    agent.head.register_forward_hook(lambda module, args, output: rows.append(args[0]))
    with pytest.raises(
        ValueError, match=r"batch\['noise'\] has shape \(4, 16, 16\), but noise_samples_per_obs=2"
    ):
        agent(batch)
    del batch["noise"], batch["time_uniforms"]
    agent(batch)
    assert rows[0].shape == (8, 16, 16)
    assert not torch.equal(rows[0][0], rows[0][1])
    with pytest.raises(ValueError, match="noise_samples_per_obs=0"):
        make_agent(noise_samples_per_obs=0)


def test_the_objective_has_full_precision_under_autocast(make_agent: Make, batch: Batch) -> None:
    agent = make_agent(**STATE_ONLY)  # a policy on state alone has no encoder that is rounded

    def loss_and_gradients(half: bool) -> list[torch.Tensor]:
        agent.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            loss = agent(batch)
        loss.backward()
        return [loss.detach(), *(p.grad for p in agent.parameters() if p.requires_grad)]

    actual, expected = loss_and_gradients(True), loss_and_gradients(False)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_encoders_in_half_precision_only_round_the_condition(
    make_agent: Make, batch: Batch
) -> None:
    agent = make_agent(conditioning="multi_token")
    cond = agent._build_cond(batch).bfloat16()
    exact, action = agent(batch), agent.predict_action(batch, noise=batch["noise"])
    agent._build_cond = lambda obs: cond.float()
    expected = agent(batch)
    agent._build_cond = lambda obs: cond
    assert torch.equal(agent(batch), expected)
    torch.testing.assert_close(expected, exact, rtol=1e-2, atol=0)
    rounded = agent.predict_action(batch, noise=batch["noise"])
    assert rounded.dtype == torch.float32
    torch.testing.assert_close(rounded, action, rtol=0, atol=1e-2)
    assert not torch.equal(rounded, action)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"aux_v_head": True, "loss_type": "adaptive"} | ENDPOINT_SAMPLE,
        {"agent_class": FlowVLAAgent},
    ],
)
def test_the_compiled_loss_is_the_loss(
    make_agent: Make, batch: Batch, options: dict[str, Any]
) -> None:
    """The graph alone: tests/slow/test_inductor.py also makes machine code of it."""
    agent = make_agent(**STATE_ONLY, **options)
    for parameter in agent.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    arguments = (
        *(batch[key] for key in ("action", "qpos", "noise", "time_uniforms", "action_is_pad")),
        torch.tensor(50.0),
    )

    def loss_and_gradients(function: Callable[..., torch.Tensor]) -> list[torch.Tensor]:
        agent.zero_grad()
        loss = function(*arguments)
        loss.backward()
        return [loss.detach(), *(p.grad for p in agent.parameters() if p.requires_grad)]

    expected = loss_and_gradients(agent.objective_loss)
    actual = loss_and_gradients(
        torch.compile(agent.objective_loss, fullgraph=True, backend="aot_eager")
    )
    for a, b in zip(actual, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


def test_unknown_options_are_refused(make_agent: Make) -> None:
    with pytest.raises(ValueError, match="choose one of mse, pseudo_huber, adaptive"):
        make_agent(loss_type="l1")
    with pytest.raises(
        ValueError, match="choose one of uniform, logit_normal, meanflow_v1, endpoint_mix"
    ):
        make_agent(time_sampler="beta")
