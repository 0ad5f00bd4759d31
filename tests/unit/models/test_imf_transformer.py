"""The iMF head: derivatives, refused options and initial weights."""

from typing import Any

import pytest
import torch
from torch import nn

from imf_ray.models.imf_transformer import IMFTransformer1D

SMALL: dict[str, Any] = {
    "input_dim": 3,
    "output_dim": 3,
    "horizon": 4,
    "n_obs_steps": 2,
    "cond_dim": 5,
    "n_layer": 2,
    "n_head": 2,
    "n_emb": 16,
    "n_kv_head": 1,
    "p_drop_emb": 0.0,
    "p_drop_attn": 0.0,
}


def test_jvp_agrees_with_finite_differences() -> None:
    torch.manual_seed(0)
    head = IMFTransformer1D(**SMALL).double()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    cond = torch.randn(2, 2, 5, dtype=torch.float64)
    z, v = torch.randn(2, 2, 4, 3, dtype=torch.float64)
    r, t = torch.tensor([[0.1, 0.3], [0.5, 0.9]], dtype=torch.float64)

    def shifted(h: float) -> torch.Tensor:
        return head(z + h * v, r, t + h, cond)

    _, derivative = torch.func.jvp(
        lambda *args: head(*args, cond), (z, r, t), (v, torch.zeros_like(r), torch.ones_like(t))
    )
    step = 1e-5
    expected = (shifted(step) - shifted(-step)) / (2 * step)
    assert derivative.dtype == torch.float64
    torch.testing.assert_close(derivative, expected, rtol=1e-7, atol=1e-7)


def test_unconditional_head() -> None:
    head = IMFTransformer1D(**SMALL | {"cond_dim": 0})
    assert head(torch.randn(2, 4, 3), torch.zeros(2), torch.ones(2)).shape == (2, 4, 3)


def test_a_missing_or_superfluous_condition_is_refused() -> None:
    sample, time = torch.randn(2, 4, 3), torch.full((2,), 0.5)
    with pytest.raises(ValueError, match="cond is required"):
        IMFTransformer1D(**SMALL)(sample, time, time)
    with pytest.raises(ValueError, match="cond_dim=0"):
        IMFTransformer1D(**SMALL | {"cond_dim": 0})(sample, time, time, torch.randn(2, 2, 5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_head": 0}, "n_head=0"),
        ({"n_kv_head": 0}, "n_kv_head=0"),
        ({"n_emb": 15}, "n_emb=15 .* n_head=2"),
        ({"n_kv_head": 8}, "n_head=2 .* n_kv_head=8"),
        ({"n_emb": 6}, "odd head dim 3"),
        ({"time_as_cond": False}, "time_as_cond=True"),
        ({"n_cond_layers": 2}, "n_cond_layers=2"),
        ({"backbone_type": "unet"}, "'unet' is unknown; choose one of attnres_full"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IMFTransformer1D(**SMALL | options)


def test_initial_weights() -> None:
    head = IMFTransformer1D(**SMALL | {"n_emb": 128, "n_layer": 12})
    assert len(head.state_dict()) == 142
    for name, parameter in head.named_parameters():
        if name.endswith("pseudo_query") or name.endswith("bias"):
            assert not parameter.any()
        elif "norm" in name or name == "ln_f.weight":
            assert (parameter == 1).all()
    assert head.time_token_proj.weight.std().item() == pytest.approx(0.02, rel=0.05)
