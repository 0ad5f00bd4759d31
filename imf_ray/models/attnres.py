"""The transformer with attention residuals: "Attention Residuals" (arXiv 2603.15031), full variant.

An ordinary residual stream adds every sub-layer's output with weight one. Here the input of a
sub-layer is a weighted sum of all earlier outputs, computed per token. The weights are a softmax
over depth with a learned query vector.

All operations are plain and differentiable (no fused attention, no complex numbers), because the
iMF loss differentiates this network in forward mode (`torch.func.jvp`) and then in reverse mode.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; leave float32 and float64 unchanged."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class RMSNormNoWeight(nn.Module):
    """Normalization x / sqrt(mean(x^2) + eps) over the last dimension, in at least float32.

    Source: "Root Mean Square Layer Normalization" (arXiv 1910.07467), without the gain.
    """

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = _at_least_float32(x)
        inverse_rms = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + self.eps)
        return (wide * inverse_rms).to(x.dtype)


class RMSNorm(RMSNormNoWeight):
    """`RMSNormNoWeight` with a learned gain per channel (arXiv 1910.07467)."""

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__(eps)
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.weight


def precompute_rope_freqs(
    head_dim: int, sequence_length: int, theta: float = 1e4
) -> tuple[Tensor, Tensor]:
    """Compute cosine and sine tables of rotary positions, each (T, head_dim / 2).

    Source: arXiv 2104.09864.

    Position p rotates pair k of channels by the angle p * theta^(-2k / head_dim).
    """
    frequencies = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angles = torch.outer(torch.arange(sequence_length, dtype=torch.float32), frequencies)
    return angles.cos(), angles.sin()


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x0, x1), (x2, x3), ... of x (..., T, head_dim) by their position's angles.

    cos and sin are (T, head_dim / 2). The rotation is real, because compilers have no complex
    kernels. It uses only two products, because forward-mode AD computes a product with a constant
    in Python.
    """
    pairs = _at_least_float32(x).unflatten(-1, (-1, 2))
    rotated = pairs * cos.unsqueeze(-1) + pairs.flip(-1) * torch.stack((-sin, sin), dim=-1)
    return rotated.flatten(-2).to(x.dtype)


class GroupedQuerySelfAttention(nn.Module):
    """Self-attention with key/value heads shared by groups of query heads (arXiv 2305.13245).

    With g = n_head / n_kv_head, key/value head j serves query heads j*g ... j*g + g - 1. There are
    no biases. Attention is a plain matmul and softmax, because torch's fused kernels have no
    forward-mode derivative.
    """

    def __init__(
        self, dim: int, n_head: int, n_kv_head: int, dropout: float = 0.0, causal: bool = False
    ) -> None:
        super().__init__()
        self.n_kv_head = n_kv_head
        self.head_dim = dim // n_head
        self.causal = causal
        self.w_q = nn.Linear(dim, n_head * self.head_dim, bias=False)
        self.w_k = nn.Linear(dim, n_kv_head * self.head_dim, bias=False)
        self.w_v = nn.Linear(dim, n_kv_head * self.head_dim, bias=False)
        self.w_o = nn.Linear(n_head * self.head_dim, dim, bias=False)
        self.attn_dropout = nn.Dropout(dropout)
        self.out_dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map x (B, T, dim), with RoPE tables (T, head_dim / 2), to (B, T, dim)."""
        batch, length, _ = x.shape

        def split_heads(y: Tensor) -> Tensor:  # -> (B, n_kv_head, group, T, head_dim)
            return y.view(batch, length, self.n_kv_head, -1, self.head_dim).permute(0, 2, 3, 1, 4)

        q = apply_rope(split_heads(self.w_q(x)), cos, sin) * self.head_dim**-0.5
        k = apply_rope(split_heads(self.w_k(x)), cos, sin)
        v = split_heads(self.w_v(x))
        scores = q @ k.transpose(-2, -1)
        if self.causal:
            future = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(future, float("-inf"))
        weights = self.attn_dropout(scores.softmax(dim=-1))
        mixed = (weights @ v).permute(0, 3, 1, 2, 4).reshape(batch, length, -1)
        return self.out_dropout(self.w_o(mixed))


class SwiGLUFFN(nn.Module):
    """w_down(silu(w_gate x) * w_up x) (arXiv 2002.05202).

    The hidden width is mult * dim, rounded up to a multiple of 8.
    """

    def __init__(self, dim: int, mult: float = 2.667, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = (int(mult * dim) + 7) // 8 * 8
        self.w_gate = nn.Linear(dim, hidden, bias=False)
        self.w_up = nn.Linear(dim, hidden, bias=False)
        self.w_down = nn.Linear(hidden, dim, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.w_down(F.silu(self.w_gate(x)) * self.w_up(x)))


class AttnResOperator(nn.Module):
    """Weighted sum of all earlier outputs, the sources (arXiv 2603.15031).

    The weights are a softmax over the sources. The logit of source s is
    pseudo_query . RMSNormNoWeight(s), without a factor 1/sqrt(d). The sum is over the unnormalized
    sources. The pseudo query starts at zero, so that the initial weights are equal.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pseudo_query = nn.Parameter(torch.zeros(dim))

    def forward(self, sources: Sequence[Tensor], logits: Sequence[Tensor]) -> Tensor:
        """Sum n sources (B, T, dim) with logits (B, T, 1) to (B, T, dim).

        `AttnResTransformerBackbone` computes a source's logits for all later sub-layers in one
        matmul. The sum is accumulated source by source. Stacking the sources would keep a copy of
        every earlier output for each sub-layer.
        """
        weights = torch.cat(tuple(logits), dim=-1).softmax(dim=-1).to(sources[0].dtype)
        first, *rest = weights.split(1, dim=-1)
        mix = first * sources[0]
        for weight, source in zip(rest, sources[1:], strict=True):
            mix = torch.addcmul(mix, weight, source)
        return mix


class AttnResSubLayer(nn.Module):
    """Attention or feed-forward sub-layer: fn(RMSNorm(weighted sum of all earlier outputs))."""

    def __init__(self, dim: int, fn: nn.Module, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = RMSNorm(dim, eps)
        self.attn_res = AttnResOperator(dim)
        self.fn = fn

    def forward(
        self, sources: Sequence[Tensor], logits: Sequence[Tensor], *fn_args: Tensor
    ) -> Tensor:
        return self.fn(self.norm(self.attn_res(sources, logits)), *fn_args)


class AttnResTransformerBackbone(nn.Module):
    """n_layer blocks of two sub-layers (attention, SwiGLU), connected by attention residuals.

    The output is the unweighted sum of the embedding and all sub-layer outputs. Rotary positions
    cover the whole sequence; their tables are not in the state dict. Source: arXiv 2603.15031.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(
        self,
        dim: int,
        n_layer: int,
        n_head: int,
        n_kv_head: int,
        max_sequence_length: int,
        dropout: float = 0.0,
        causal: bool = False,
        ffn_mult: float = 2.667,
        eps: float = 1e-6,
        rope_theta: float = 1e4,
    ) -> None:
        super().__init__()
        self.key_norm = RMSNormNoWeight(eps)
        self.layers = nn.ModuleList()
        for _ in range(n_layer):
            attention = GroupedQuerySelfAttention(dim, n_head, n_kv_head, dropout, causal)
            self.layers.append(AttnResSubLayer(dim, attention, eps))
            self.layers.append(AttnResSubLayer(dim, SwiGLUFFN(dim, ffn_mult, dropout), eps))
        cos, sin = precompute_rope_freqs(dim // n_head, max_sequence_length, rope_theta)
        self.register_buffer("rope_cos", cos, persistent=False)
        self.register_buffer("rope_sin", sin, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map token embeddings (B, T, dim) to (B, T, dim); T is at most max_sequence_length."""
        rope = self.rope_cos[: x.shape[1]], self.rope_sin[: x.shape[1]]
        layers = cast(list[AttnResSubLayer], list(self.layers))
        queries = torch.stack([layer.attn_res.pseudo_query for layer in layers])
        sources: list[Tensor] = []
        logits: list[list[Tensor]] = [[] for _ in layers]  # per sub-layer, one per source

        def add_source(source: Tensor) -> None:
            first_reader = len(sources)  # index of the first sub-layer that reads the source
            sources.append(source)
            if first_reader < len(layers):
                scores = F.linear(self.key_norm(source), queries[first_reader:]).split(1, dim=-1)
                for layer_logits, score in zip(logits[first_reader:], scores, strict=True):
                    layer_logits.append(score)

        add_source(x)
        for i, layer in enumerate(layers):
            fn_args = rope if i % 2 == 0 else ()
            add_source(layer(sources, logits[i], *fn_args))
        return torch.stack(sources).sum(dim=0)
