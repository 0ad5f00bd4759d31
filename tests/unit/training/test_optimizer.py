"""The moving average of the weights, compared with its formula."""

import copy

import torch
from torch import nn

from imf_ray.training.ema import EMA


class Drifting(nn.Module):
    """A parameter, a floating-point buffer and a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))
        self.register_buffer("scale", torch.randn(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    @torch.no_grad()
    def drift(self) -> None:
        self.weight += torch.randn(5, 3)
        self.scale += torch.randn(4)
        self.count += 1


def test_ema_follows_its_formula() -> None:
    torch.manual_seed(0)
    module = Drifting().double()
    ema = EMA(module)
    expected = module.weight.detach().clone()
    for step in range(20):
        module.drift()
        ema.update(step)
        decay = 1.0 - (1.0 + step) ** -0.75
        expected = decay * expected + (1.0 - decay) * module.weight.detach()
        torch.testing.assert_close(ema.state["weight"], expected, rtol=1e-12, atol=1e-12)
    assert int(ema.state["count"]) == 20  # copied, not averaged
    assert not torch.equal(ema.state["scale"], module.scale)


def test_ema_is_bitwise_a_lerp_of_each_tensor() -> None:
    torch.manual_seed(0)
    module = Drifting()
    ema = EMA(module)
    expected = copy.deepcopy(module.state_dict())
    for step in (0, 3, 1000):
        module.drift()
        ema.update(step)
        decay = 1.0 - (1.0 + step) ** -0.75
        for name in ("weight", "scale"):
            expected[name].lerp_(module.state_dict()[name], 1.0 - decay)
            assert torch.equal(ema.state[name], expected[name])


def test_decay_is_bounded() -> None:
    module = nn.Linear(1, 1, bias=False).double()
    ema = EMA(module)
    nn.init.zeros_(module.weight)
    before = ema.state["weight"].clone()
    ema.update(10**9)
    torch.testing.assert_close(ema.state["weight"], 0.9999 * before, rtol=1e-12, atol=0.0)


def test_a_loaded_ema_continues_as_the_saved_one() -> None:
    torch.manual_seed(0)
    module = Drifting()
    first, second = EMA(module), EMA(module)
    module.drift()
    first.update(0)
    second.load({name: value.clone() for name, value in first.state.items()})
    module.drift()
    for ema in (first, second):
        ema.update(1)
    assert all(torch.equal(first.state[name], second.state[name]) for name in first.state)
