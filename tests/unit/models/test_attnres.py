"""The parts of the attention-residual transformer agree with their papers' formulas."""

import pytest
import torch
from torch import Tensor

from imf_ray.models.attnres import (
    AttnResTransformerBackbone,
    GroupedQuerySelfAttention,
    RMSNorm,
    RMSNormNoWeight,
    SwiGLUFFN,
    apply_rope,
    precompute_rope_freqs,
)


def backbone(**kwargs: object) -> AttnResTransformerBackbone:
    torch.manual_seed(0)
    sizes = {"dim": 16, "n_layer": 2, "n_head": 2, "n_kv_head": 1, "max_sequence_length": 6}
    network = AttnResTransformerBackbone(**(sizes | kwargs)).double()
    for layer in network.layers:  # zero queries would hide wrong weights
        torch.nn.init.normal_(layer.attn_res.pseudo_query)
    return network


def test_norm_keeps_the_dtype_and_gives_unit_rms() -> None:
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        y = RMSNormNoWeight()(torch.randn(3, 64).to(dtype) * 7)
        assert y.dtype == dtype
        torch.testing.assert_close(y.square().mean(-1).float(), torch.ones(3), atol=1e-2, rtol=0)
    assert RMSNorm(64).double()(torch.randn(3, 64).double()).dtype == torch.float64


def test_rope_is_a_complex_rotation_and_scores_depend_on_relative_positions() -> None:
    cos, sin = precompute_rope_freqs(8, 12)
    x = torch.randn(12, 8)
    rotated = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.complex(cos, sin)
    torch.testing.assert_close(apply_rope(x, cos, sin), torch.view_as_real(rotated).flatten(-2))
    q, k = (apply_rope(torch.randn(8).expand(12, 8), cos, sin) for _ in range(2))
    scores = q @ k.T
    torch.testing.assert_close(scores[1:, 1:], scores[:-1, :-1])


def test_a_key_value_head_serves_consecutive_query_heads() -> None:
    x = torch.randn(2, 5, 16)
    rope = precompute_rope_freqs(4, 5)
    grouped = GroupedQuerySelfAttention(16, n_head=4, n_kv_head=2)
    full = GroupedQuerySelfAttention(16, n_head=4, n_kv_head=4)
    state = grouped.state_dict()
    for key in ("w_k.weight", "w_v.weight"):
        state[key] = state[key].unflatten(0, (2, 4)).repeat_interleave(2, dim=0).flatten(0, 1)
    full.load_state_dict(state)
    torch.testing.assert_close(grouped(x, *rope), full(x, *rope))


def test_causal_attention_ignores_later_tokens() -> None:
    network = backbone(causal=True)
    x = torch.randn(1, 6, 16, dtype=torch.float64)
    changed = x.clone()
    changed[:, 4:] = 0
    torch.testing.assert_close(network(x)[:, :4], network(changed)[:, :4])


@pytest.mark.parametrize(("dim", "hidden"), [(256, 688), (384, 1024), (768, 2048)])
def test_swiglu_hidden_width(dim: int, hidden: int) -> None:
    assert SwiGLUFFN(dim).w_down.in_features == hidden


def test_the_backbone_by_its_formula() -> None:
    network = backbone()
    x = torch.randn(2, 6, 16, dtype=torch.float64)

    def weighted_sum(sources: list[Tensor], query: Tensor) -> Tensor:
        stacked = torch.stack(sources)
        keys = stacked * torch.rsqrt(stacked.square().mean(-1, keepdim=True) + 1e-6)
        weights = torch.einsum("d,nbtd->nbt", query, keys).softmax(dim=0)
        return torch.einsum("nbt,nbtd->btd", weights, stacked)

    sources = [x]
    for i, layer in enumerate(network.layers):
        rope = (network.rope_cos, network.rope_sin) if i % 2 == 0 else ()
        h = weighted_sum(sources, layer.attn_res.pseudo_query)
        sources.append(layer.fn(layer.norm(h), *rope))
    torch.testing.assert_close(network(x), sum(sources))


@pytest.mark.parametrize(("n_emb", "millions"), [(256, 9.50), (384, 21.25)])
def test_parameter_count(n_emb: int, millions: float) -> None:
    with torch.device("meta"):
        network = AttnResTransformerBackbone(n_emb, 12, 1, 1, max_sequence_length=20)
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert count == pytest.approx(millions, abs=0.006)
