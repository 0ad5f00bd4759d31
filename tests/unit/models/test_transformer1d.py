"""The standard head: state dict, masks, forward pass and optimizer groups."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imf_ray.models.transformer1d import Transformer1D

SMALL: dict[str, Any] = {
    "input_dim": 3,
    "output_dim": 3,
    "horizon": 4,
    "n_obs_steps": 2,
    "cond_dim": 5,
    "n_layer": 2,
    "n_head": 2,
    "n_emb": 16,
    "p_drop_emb": 0.0,
    "p_drop_attn": 0.0,
}
TIMES = torch.tensor([3, 97])


def make(**options: Any) -> Transformer1D:
    torch.manual_seed(0)
    return Transformer1D(**SMALL | options)


def sample_and_cond() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 4, 3, generator=generator), torch.randn(2, 2, 5, generator=generator)


def influence(head: Transformer1D, output: int, of: str) -> Tensor:
    """Mask of the positions of `of` ("sample" or "cond") that one predicted action depends on."""
    inputs = dict(zip(("sample", "cond"), sample_and_cond(), strict=True))
    inputs[of].requires_grad_()
    head(inputs["sample"], TIMES, inputs["cond"])[:, output].sum().backward()
    return inputs[of].grad.abs().sum(dim=(0, 2)) > 0


def attention_keys(prefix: str, name: str) -> set[str]:
    keys = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
    return {f"{prefix}.{name}.{key}" for key in keys}


def layer_keys(prefix: str, modules: tuple[str, ...]) -> set[str]:
    return {f"{prefix}.{module}.{kind}" for module in modules for kind in ("weight", "bias")}


@pytest.mark.parametrize("n_cond_layers", [0, 2])
def test_state_dict_keys_are_diffusion_policy_s(n_cond_layers: int) -> None:
    expected = {"_dummy_variable", "pos_emb", "cond_pos_emb", "mask", "memory_mask"}
    expected |= layer_keys("x", ("input_emb", "cond_obs_emb", "ln_f", "head"))
    expected = {key.removeprefix("x.") for key in expected}
    if n_cond_layers == 0:
        expected |= layer_keys("encoder", ("0", "2"))
    for i in range(n_cond_layers):
        layer = f"encoder.layers.{i}"
        expected |= attention_keys(layer, "self_attn")
        expected |= layer_keys(layer, ("linear1", "linear2", "norm1", "norm2"))
    for i in range(2):
        layer = f"decoder.layers.{i}"
        expected |= attention_keys(layer, "self_attn") | attention_keys(layer, "multihead_attn")
        expected |= layer_keys(layer, ("linear1", "linear2", "norm1", "norm2", "norm3"))
    state = make(n_cond_layers=n_cond_layers, causal_attn=True).state_dict()
    assert set(state) == expected
    assert state["pos_emb"].shape == (1, 4, 16)
    assert state["cond_pos_emb"].shape == (1, 3, 16)
    assert state["_dummy_variable"].shape == (0,)
    assert state["decoder.layers.0.linear1.weight"].shape == (64, 16)


def test_diffusion_policy_s_masks_load() -> None:
    head = make(causal_attn=True)
    state = head.state_dict()
    infinity = float("inf")
    for name in ("mask", "memory_mask"):
        state[name] = torch.zeros(state[name].shape).masked_fill(state[name], -infinity)
    fresh = make(causal_attn=True)
    fresh.mask.logical_not_()
    fresh.load_state_dict(state)
    assert torch.equal(fresh.mask, head.mask)
    assert torch.equal(fresh.memory_mask, head.memory_mask)
    # Averaging weights (EMA) would turn infinities into NaN.
    assert not any(buffer.is_floating_point() for buffer in fresh.buffers())


def test_the_forward_pass_by_hand() -> None:
    """One decoder layer: pre-norm self-attention, cross-attention and a GELU network."""
    head = make(n_layer=1, n_head=1).double().eval()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    sample, cond = (x.double() for x in sample_and_cond())
    state = head.state_dict()

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        x = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return x * state[f"{name}.weight"] + state[f"{name}.bias"]

    def attend(x: Tensor, memory: Tensor, name: str) -> Tensor:
        w, b = state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"]
        q, k, v = (
            y @ w[i : i + 16].T + b[i : i + 16] for i, y in ((0, x), (16, memory), (32, memory))
        )
        return linear((q @ k.mT / 4).softmax(-1) @ v, f"{name}.out_proj")

    angles = TIMES[:, None].double() * 1e4 ** (-torch.arange(8).double() / 7)
    time = torch.cat((angles.sin(), angles.cos()), dim=-1)[:, None]
    memory = torch.cat((time, linear(cond, "cond_obs_emb")), dim=1) + state["cond_pos_emb"]
    hidden = linear(memory, "encoder.0")
    memory = linear(hidden * hidden.exp().log1p().tanh(), "encoder.2")
    x = linear(sample, "input_emb") + state["pos_emb"]
    layer = "decoder.layers.0"
    y = norm(x, f"{layer}.norm1")
    x = x + attend(y, y, f"{layer}.self_attn")
    x = x + attend(norm(x, f"{layer}.norm2"), memory, f"{layer}.multihead_attn")
    hidden = linear(norm(x, f"{layer}.norm3"), f"{layer}.linear1")
    gelu = hidden * (1 + (hidden / 2**0.5).erf()) / 2
    x = x + linear(gelu, f"{layer}.linear2")
    expected = linear(norm(x, "ln_f"), "head")
    torch.testing.assert_close(head(sample, TIMES, cond), expected, rtol=1e-9, atol=1e-9)


def test_a_causal_action_depends_on_earlier_actions_and_observations_only() -> None:
    head = make(causal_attn=True)
    for i in range(4):
        assert influence(head, i, "sample").tolist() == [j <= i for j in range(4)]
        assert influence(head, i, "cond").tolist() == [j <= i for j in range(2)]
    assert influence(make(), 0, "sample").all() and influence(make(), 0, "cond").all()


def test_every_parameter_is_in_one_optimizer_group() -> None:
    head = make(n_cond_layers=1, causal_attn=True)
    decaying, rest = head.get_optim_groups(weight_decay=0.1)
    assert (decaying["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    names = {id(p): name for name, p in head.named_parameters()}
    grouped = [names[id(p)] for group in (decaying, rest) for p in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    for parameter in decaying["params"]:
        name = names[id(parameter)]
        assert name.endswith("weight") and "norm" not in name and "ln_f" not in name
    not_decaying = {names[id(p)] for p in rest["params"]}
    norms = {name for name in names.values() if "norm" in name or "ln_f" in name}
    biases = {name for name in names.values() if name.endswith("bias")}
    assert not_decaying == norms | biases | {"pos_emb", "cond_pos_emb", "_dummy_variable"}


def test_initial_weights() -> None:
    for name, parameter in make(n_emb=128, n_cond_layers=1).named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name or "ln_f" in name:
            assert (parameter == 1).all(), name
        elif parameter.numel():
            assert parameter.std().item() == pytest.approx(0.02, rel=0.15), name


@pytest.mark.parametrize("n_cond_layers", [0, 1])
def test_gradients_reach_every_trainable_parameter(n_cond_layers: int) -> None:
    head = make(n_cond_layers=n_cond_layers, causal_attn=True)
    sample, cond = sample_and_cond()
    head(sample, TIMES, cond).square().sum().backward()
    for name, parameter in head.named_parameters():
        assert not parameter.requires_grad or parameter.grad.any(), name


def test_a_missing_or_superfluous_condition_is_refused() -> None:
    sample, cond = sample_and_cond()
    unconditional = make(cond_dim=0, causal_attn=True)
    assert unconditional(sample, TIMES).shape == (2, 4, 3)
    with pytest.raises(ValueError, match="cond is required"):
        make()(sample, TIMES)
    with pytest.raises(ValueError, match="cond_dim=0"):
        unconditional(sample, TIMES, cond)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_head": 0}, "n_head=0"),
        ({"n_head": 3}, "n_emb=16 .* n_head=3"),
        ({"n_emb": 15, "n_head": 1}, "n_emb=15 is odd"),
        ({"time_as_cond": False}, "set time_as_cond=True"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
