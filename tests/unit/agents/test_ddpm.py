"""The diffusion agent: the loss by hand, sampling with a known answer, both heads."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imf_ray.agents.ddpm import BETA_SCHEDULES, PREDICTION_TYPES, DDPMVLAAgent
from imf_ray.agents.pretrained import load_agent, make_agent, save_agent
from imf_ray.config import load_config
from imf_ray.errors import UserError
from imf_ray.models.imf_transformer import IMFTransformer1D
from imf_ray.models.transformer1d import Transformer1D

Batch = dict[str, Any]
LEVELS = 100
MEAN, DEVIATION = 0.3, 0.2
HEADS: dict[str, tuple[type[nn.Module], dict[str, Any]]] = {
    "transformer": (Transformer1D, {"causal_attn": True}),
    "attnres": (IMFTransformer1D, {"n_kv_head": 1}),
}


def cosine_alphas() -> Tensor:
    """The products a_k = prod (1 - beta) of the cosine schedule (arXiv 2102.09672), float64."""

    def level(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - level((k + 1) / LEVELS) / level(k / LEVELS), 0.999) for k in range(LEVELS)]
    return (1 - torch.tensor(betas, dtype=torch.float64)).cumprod(0)


ALPHAS = cosine_alphas()


class GaussianHead(nn.Module):
    """The optimal prediction for actions distributed as N(MEAN, DEVIATION^2)."""

    takes_time_interval = False
    prediction_type = "epsilon"

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.calls: list[Tensor] = []

    def forward(self, sample: Tensor, timestep: Tensor, cond: Tensor) -> Tensor:
        self.calls.append(timestep)
        a = ALPHAS[timestep].to(sample.dtype)[:, None, None]
        off = (sample - a.sqrt() * MEAN) / (a * DEVIATION**2 + 1 - a)
        noise, action = (1 - a).sqrt() * off, MEAN + a.sqrt() * DEVIATION**2 * off
        velocity = a.sqrt() * noise - (1 - a).sqrt() * action
        return {"epsilon": noise, "sample": action, "v_prediction": velocity}[self.prediction_type]


class ScaleHead(nn.Module):
    """Records its times; predicts scale * sample."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.takes_time_interval = False
        self.calls: list[tuple[Tensor, ...]] = []
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, sample: Tensor, *times_and_cond: Tensor) -> Tensor:
        self.calls.append(times_and_cond[:-1])
        return self.scale * sample


def make(backbone: str = "transformer", **options: Any) -> DDPMVLAAgent:
    """A small policy on state alone."""
    torch.manual_seed(0)
    factory, own = HEADS[backbone]
    sizes = {"n_emb": 32, "n_layer": 2, "n_head": 1, "p_drop_emb": 0.0, "p_drop_attn": 0.0}
    defaults = {
        "action_dim": 2,
        "state_dim": 3,
        "camera_names": (),
        "pred_horizon": 4,
        "num_action_steps": 2,
        "head": sizes | own,
        "head_factory": factory,
    }
    return DDPMVLAAgent(**defaults | options)


def make_stub(factory: Callable[..., nn.Module], **options: Any) -> DDPMVLAAgent:
    return make(head={}, head_factory=factory, **options)


@pytest.fixture
def batch() -> Batch:
    """Four samples; the last action of the first and of the third is padding."""
    generator = torch.Generator().manual_seed(1)
    is_pad = torch.zeros(4, 4, dtype=torch.bool)
    is_pad[::2, -1] = True
    return {
        "qpos": torch.randn(4, 2, 3, generator=generator),
        "action": torch.rand(4, 4, 2, generator=generator) * 2 - 1,
        "action_is_pad": is_pad,
        "noise": torch.randn(4, 4, 2, generator=generator),
        "time_uniforms": torch.tensor([[1e-9], [0.509], [0.51], [1 - 1e-7]]).expand(4, 3),
    }


@pytest.mark.parametrize("loss_type", ["mse", "pseudo_huber"])
@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_loss_by_hand(batch: Batch, prediction_type: str, loss_type: str) -> None:
    agent = make_stub(ScaleHead, prediction_type=prediction_type, loss_type=loss_type)
    x, e = batch["action"].double(), batch["noise"].double()
    total, count = 0.0, 0
    for row, timestep in enumerate((0, 50, 51, 99)):
        a = ALPHAS[timestep]
        z = a.sqrt() * x[row] + (1 - a).sqrt() * e[row]
        velocity = a.sqrt() * e[row] - (1 - a).sqrt() * x[row]
        target = {"epsilon": e[row], "sample": x[row], "v_prediction": velocity}[prediction_type]
        square = (0.5 * z - target).square()
        losses = square if loss_type == "mse" else (1 + square).sqrt() - 1
        losses = losses[~batch["action_is_pad"][row]]
        total, count = total + losses.sum().item(), count + losses.numel()
    assert agent(batch).item() == pytest.approx(total / count, rel=1e-5)
    assert agent(batch | {"valid_count": torch.tensor(7.0)}).item() == pytest.approx(total / 14)
    ((timesteps,), _) = agent.head.calls
    assert timesteps.tolist() == [0, 50, 51, 99] and timesteps.dtype == torch.long


def test_padded_actions_change_neither_loss_nor_gradients(batch: Batch) -> None:
    def loss_and_gradient(action: Tensor) -> tuple[Tensor, Tensor]:
        agent = make_stub(ScaleHead)
        loss = agent(batch | {"action": action})
        loss.backward()
        return loss, agent.head.scale.grad

    changed = batch["action"].masked_fill(batch["action_is_pad"][..., None], 50.0)
    torch.testing.assert_close(loss_and_gradient(changed), loss_and_gradient(batch["action"]))
    valid = batch["action"].masked_fill(~batch["action_is_pad"][..., None], 50.0)
    assert loss_and_gradient(valid)[0] != loss_and_gradient(batch["action"])[0]


@pytest.mark.parametrize("backbone", HEADS)
def test_random_numbers_come_from_the_batch_or_from_torch(backbone: str, batch: Batch) -> None:
    agent = make(backbone)
    assert torch.equal(agent(batch), agent(batch))
    drawn = {k: v for k, v in batch.items() if k not in ("noise", "time_uniforms")}
    torch.manual_seed(3)
    first, second = agent(drawn), agent(drawn)
    assert first != second
    torch.manual_seed(3)
    assert torch.equal(agent(drawn), first)


def test_several_noise_samples_are_averaged(batch: Batch) -> None:
    single, double = make(), make(noise_samples_per_obs=2)
    other = {"noise": -batch["noise"], "time_uniforms": 1 - batch["time_uniforms"]}
    both = {key: torch.stack((batch[key], other[key]), dim=1) for key in other}
    mean = (single(batch) + single(batch | other)) / 2
    torch.testing.assert_close(double(batch | both), mean)


def test_random_timesteps_cover_all_levels(batch: Batch) -> None:
    agent = make_stub(ScaleHead)
    del batch["time_uniforms"]
    for _ in range(300):
        agent(batch)
    counts = torch.cat([timesteps for (timesteps,) in agent.head.calls]).bincount()
    assert len(counts) == LEVELS and counts.min() > 0


def test_a_head_that_takes_an_interval_gets_equal_times_in_the_unit_interval(batch: Batch) -> None:
    agent = make_stub(ScaleHead, inference_steps=4)
    agent.head.takes_time_interval = True
    agent(batch)
    agent.predict_action(batch, noise=batch["noise"])
    for r, t in agent.head.calls:
        assert torch.equal(r, t)
    times = [t.tolist() for _, t in agent.head.calls]
    assert times[0] == pytest.approx([0.0, 0.5, 0.51, 0.99])
    assert [time[0] for time in times[1:]] == pytest.approx([0.99, 0.74, 0.49, 0.24])


@pytest.mark.parametrize("backbone", HEADS)
def test_gradients_reach_every_trainable_parameter(backbone: str, batch: Batch) -> None:
    agent = make(backbone)
    agent(batch).backward()
    for name, parameter in agent.named_parameters():
        assert not parameter.requires_grad or parameter.grad is not None, name
    assert agent.head.input_emb.weight.grad.any()
    assert agent.head.cond_obs_emb.weight.grad.any()


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_one_step_is_the_posterior_mean_of_pure_noise(batch: Batch, prediction_type: str) -> None:
    agent = make_stub(GaussianHead, prediction_type=prediction_type).double()
    agent.head.prediction_type = prediction_type
    noise = batch["noise"].double()
    action = agent.predict_action(batch, noise=noise)
    a = ALPHAS[-1]
    off = (noise - a.sqrt() * MEAN) / (a * DEVIATION**2 + 1 - a)
    # 1 / sqrt(a) is 2000: the tables of diffusers have single precision.
    torch.testing.assert_close(action, MEAN + a.sqrt() * DEVIATION**2 * off, rtol=0, atol=1e-3)
    assert action.dtype == torch.float64
    assert [call.tolist() for call in agent.head.calls] == [[99] * 4]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_many_steps_map_noise_to_the_data_distribution(batch: Batch, prediction_type: str) -> None:
    """Between Gaussians the exact flow keeps a point's distance to the mean in deviations."""
    agent = make_stub(GaussianHead, prediction_type=prediction_type).double()
    agent.head.prediction_type = prediction_type
    noise = torch.randn(4, 4, 2, generator=torch.Generator().manual_seed(0)).double()
    exact = MEAN + DEVIATION * noise
    errors = {}
    for steps in (1, 2, 4, 5, 10, 20, 25, 50, 100):
        agent.inference_steps = steps
        agent.head.calls.clear()
        errors[steps] = (agent.predict_action(batch, noise=noise) - exact).abs().max().item()
        times = [call[0].item() for call in agent.head.calls]
        assert times == list(range(99, -1, -LEVELS // steps))
    assert errors[1] > DEVIATION
    assert list(errors.values()) == sorted(errors.values(), reverse=True)
    assert errors[100] < 0.02
    assert errors[50] / errors[100] == pytest.approx(2, abs=0.1)  # DDIM is of the first order


def test_estimates_are_clipped_to_the_range_of_actions(batch: Batch) -> None:
    """One step divides by sqrt(a) = 1 / 2029, so the unclipped result is huge."""
    noise = batch["noise"]
    clipped = make_stub(ScaleHead).predict_action(batch, noise=noise)
    assert torch.equal(clipped, noise.sign())
    free = make_stub(ScaleHead, clip_sample=False).predict_action(batch, noise=noise)
    torch.testing.assert_close(free, 0.5 * noise * 2029, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("beta_schedule", BETA_SCHEDULES)
@pytest.mark.parametrize("levels", [50, 1000])
def test_the_last_level_is_noise_and_the_first_is_data(
    batch: Batch, beta_schedule: str, levels: int
) -> None:
    options = {"beta_schedule": beta_schedule, "num_train_timesteps": levels}
    agent = make_stub(ScaleHead, **options)
    for uniform, near in ((0.0, "action"), (1.0, "noise")):
        samples = []

        def forward(sample: Tensor, times: Tensor, cond: Tensor, samples=samples) -> Tensor:
            samples.append(sample)
            return sample

        agent.head.forward = forward
        agent(batch | {"time_uniforms": torch.full((4, 3), uniform)})
        torch.testing.assert_close(samples[0], batch[near], rtol=0, atol=0.2)


@pytest.mark.parametrize("backbone", HEADS)
def test_a_chunk_depends_only_on_its_noise(backbone: str, batch: Batch) -> None:
    agent = make(backbone, inference_steps=5).eval()
    first = agent.predict_action(batch, noise=batch["noise"])
    assert torch.equal(agent.predict_action(batch, noise=batch["noise"]), first)
    assert torch.equal(copy.deepcopy(agent).predict_action(batch, noise=batch["noise"]), first)
    assert not torch.equal(agent.predict_action(batch, noise=-batch["noise"]), first)
    precise = agent.double().predict_action(batch, noise=batch["noise"].double())
    torch.testing.assert_close(precise, first.double(), rtol=0, atol=1e-2)
    agent.float()
    agent.inference_steps = 1
    assert not torch.equal(agent.predict_action(batch, noise=batch["noise"]), first)


@pytest.mark.parametrize(
    ("backbone", "prediction_type"), [("attnres", "epsilon"), ("transformer", "sample")]
)
def test_the_policy_overfits_a_tiny_batch(
    backbone: str, prediction_type: str, batch: Batch
) -> None:
    agent = make(backbone, inference_steps=10, prediction_type=prediction_type)
    optimizer = torch.optim.AdamW(agent.get_optim_groups(1e-5), lr=5e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=250)
    rows = torch.arange(4).repeat(16)
    samples = {key: batch[key][rows] for key in ("qpos", "action")}
    samples["action_is_pad"] = torch.zeros(64, 4, dtype=torch.bool)
    for _ in range(250):
        optimizer.zero_grad()
        agent(samples).backward()
        optimizer.step()
        decay.step()
    chunk = agent.eval().predict_action(batch, noise=batch["noise"])
    assert (chunk - batch["action"]).abs().mean() < 0.15
    assert batch["action"].abs().mean() > 0.4


OVERRIDES = [
    "agent.head.n_emb=32",
    "agent.head.n_layer=1",
    "agent.vision_backbone.stage_widths=[8,8,8,8]",
    "agent.vision_backbone.blocks_per_stage=[1,1,1,1]",
    "data.camera_names=[top]",
    "task.image_size=40",
]


@pytest.mark.parametrize(
    ("group", "head"),
    [("resnet_transformer", Transformer1D), ("resnet_ddpm_attnres", IMFTransformer1D)],
)
def test_an_agent_group_is_built_saved_and_loaded(
    group: str, head: type[nn.Module], tmp_path: Path
) -> None:
    config = load_config([f"agent={group}", *OVERRIDES])
    agent = make_agent(config.agent, "joint").eval()
    assert isinstance(agent, DDPMVLAAgent) and isinstance(agent.head, head)
    assert (agent.inference_steps, agent.loss_type) == (10, "mse")
    save_agent(tmp_path, agent, config, ema=None)
    loaded, loaded_config = load_agent(tmp_path)
    assert loaded_config.agent == config.agent
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (1, 2, 40, 40, 3), dtype=torch.uint8, generator=generator)
    obs = {"images": {"top": images}, "qpos": torch.randn(1, 2, 16, generator=generator)}
    noise = torch.randn(1, 16, 16, generator=generator)
    chunk = agent.predict_action(obs, noise=noise)
    assert torch.equal(loaded.predict_action(obs, noise=noise), chunk)


def test_weights_do_not_depend_on_the_objective() -> None:
    """Weights of one objective can initialize a run of another."""
    imf = make_agent(load_config(OVERRIDES).agent, "joint")
    ddpm = make_agent(load_config(["agent.objective=ddpm", *OVERRIDES]).agent, "joint")
    ddpm.load_state_dict(imf.state_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta_schedule": "cosine"}, "choose one of squaredcos_cap_v2, linear"),
        ({"prediction_type": "v"}, "choose one of epsilon, sample, v_prediction"),
        ({"loss_type": "l1"}, "choose one of mse, pseudo_huber"),
        ({"num_train_timesteps": 0}, "set num_train_timesteps >= 1"),
        ({"num_train_timesteps": 20, "beta_schedule": "linear"}, "set num_train_timesteps >= 21"),
        ({"normalization_type": "mean_std"}, "clip_sample=False"),
        ({"inference_steps": 3}, "inference_steps=3 .* choose one of 1, 2, 4, 5, 10"),
        ({"inference_steps": 0}, "inference_steps=0"),
        ({"inference_steps": 200}, "inference_steps=200"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_invalid_inference_steps_are_refused_when_set() -> None:
    agent = make(inference_steps=10)
    with pytest.raises(ValueError, match="inference_steps=8"):
        agent.inference_steps = 8
    assert agent.inference_steps == 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["agent.head.backbone_type=transformer"], "Set agent.objective=ddpm"),
        (["agent=resnet_transformer", "agent.objective=flow"], "objective=flow .* r and t"),
        (["agent.head.backbone_type=unet"], "choose one of attnres_full, transformer"),
        (["agent.objective=score"], "choose one of imf, flow, ddpm"),
        (["agent=resnet_transformer", "agent.conditioning=multi_token"], "causal_attn=false"),
        (["agent=resnet_transformer", "agent.inference_steps=7"], "inference_steps=7"),
        (["agent=resnet_ddpm_attnres", "agent.head.n_cond_layers=1"], "n_cond_layers=0"),
    ],
)
def test_impossible_configurations_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_agent(load_config(overrides).agent, "joint")
