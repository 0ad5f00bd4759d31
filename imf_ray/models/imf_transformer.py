"""The iMF head: a transformer over [r, t, condition..., action...] tokens."""

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from imf_ray.models.attnres import AttnResTransformerBackbone, RMSNorm

BACKBONE_TYPES = ("attnres_full",)


def sinusoidal_time_embedding(tau: Tensor, dim: int) -> Tensor:
    """Embed times tau (B,) in [0, 1] as (B, dim): sines, then cosines.

    The dim/2 angles are tau, which is not scaled, times frequencies from 1 to 1e-4 (arXiv
    1706.03762).
    """
    half = dim // 2
    steps = torch.arange(half, dtype=tau.dtype, device=tau.device)
    frequencies = torch.exp(steps * (-math.log(1e4) / max(half - 1, 1)))
    angles = tau[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1)


class IMFTransformer1D(nn.Module):
    """Network for the average velocity u(z_t, r, t | cond) of an action chunk (arXiv 2512.02012).

    The backbone is the attention-residual transformer (arXiv 2603.15031). Argument order, defaults
    and state-dict keys match RoboIMI's head, so that its weights load.

    Args:
        input_dim: width of a noisy action.
        output_dim: width of a predicted velocity.
        horizon: actions in a chunk.
        n_obs_steps: condition tokens in a sequence; None means as many as the horizon.
        cond_dim: width of a condition token; 0 for an unconditional head.
        n_layer, n_head, n_emb: blocks, query heads and width of the transformer.
        p_drop_emb, p_drop_attn: dropout of the token embeddings, and inside the sub-layers.
        causal_attn: let a token attend only to itself and earlier ones.
        time_as_cond: pass times as tokens; must be True for this backbone.
        obs_as_cond: ignored; accepted for compatibility with RoboIMI. cond_dim > 0 has its effect.
        n_cond_layers: layers of a separate condition encoder; must be 0 for this backbone.
        backbone_type: one of `BACKBONE_TYPES`.
        n_kv_head: key/value heads, a divisor of n_head.
        attn_res_ffn_mult, attn_res_eps, attn_res_rope_theta: SwiGLU width factor, RMSNorm epsilon,
            RoPE base.

    Raises:
        ValueError: an impossible combination of options.
    """

    takes_time_interval: ClassVar[bool] = True
    """True if `forward` takes the ends (r, t) of a time interval, False if one timestep."""

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        horizon: int,
        n_obs_steps: int | None = None,
        cond_dim: int = 0,
        n_layer: int = 12,
        n_head: int = 8,
        n_emb: int = 768,
        p_drop_emb: float = 0.1,
        p_drop_attn: float = 0.1,
        causal_attn: bool = False,
        time_as_cond: bool = True,
        obs_as_cond: bool = False,
        n_cond_layers: int = 0,
        backbone_type: str = "attnres_full",
        n_kv_head: int = 8,
        attn_res_ffn_mult: float = 2.667,
        attn_res_eps: float = 1e-6,
        attn_res_rope_theta: float = 1e4,
    ) -> None:
        super().__init__()
        _check_heads(n_emb, n_head, n_kv_head)
        _check_backbone(backbone_type, time_as_cond, n_cond_layers)
        n_cond_tokens = (horizon if n_obs_steps is None else n_obs_steps) if cond_dim > 0 else 0

        self.horizon = horizon
        self.n_emb = n_emb
        self.obs_as_cond = cond_dim > 0
        # A key of RoboIMI's state dict. Not trainable, because DDP would wait for its gradient.
        self._dummy_variable = nn.Parameter(torch.empty(0), requires_grad=False)
        self.input_emb = nn.Linear(input_dim, n_emb)
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb) if self.obs_as_cond else None
        self.time_token_proj = nn.Linear(n_emb, n_emb)
        self.drop = nn.Dropout(p_drop_emb)
        self.attnres_backbone = AttnResTransformerBackbone(
            dim=n_emb,
            n_layer=n_layer,
            n_head=n_head,
            n_kv_head=n_kv_head,
            max_sequence_length=2 + n_cond_tokens + horizon,
            dropout=p_drop_attn,
            causal=causal_attn,
            ffn_mult=attn_res_ffn_mult,
            eps=attn_res_eps,
            rope_theta=attn_res_rope_theta,
        )
        self.ln_f = RMSNorm(n_emb, attn_res_eps)
        self.head = nn.Linear(n_emb, output_dim)
        self.apply(_init_weights)

    def forward(self, sample: Tensor, r: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Compute the average velocity from time t (noisier) to time r.

        Args:
            sample: z_t, (B, horizon, input_dim).
            r, t: times in [0, 1], (B,); 1 is noise, 0 is data.
            cond: condition tokens (B, n_obs_steps, cond_dim); required if and only if cond_dim > 0.

        Returns:
            (B, horizon, output_dim).

        Raises:
            ValueError: cond is missing, or passed to an unconditional head.
        """
        return self.head(self.ln_f(self.features(sample, r, t, cond)))

    def features(self, sample: Tensor, r: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """Compute the backbone's output (B, horizon, n_emb) for the action tokens."""
        if (cond is not None) != self.obs_as_cond:
            raise ValueError(
                "cond is required: the head was built with cond_dim > 0; pass condition tokens"
                if self.obs_as_cond
                else "cond is given to a head built with cond_dim=0; build it with cond_dim > 0"
            )
        tokens = [self._time_token(r), self._time_token(t)]
        if self.cond_obs_emb is not None:
            tokens.append(self.cond_obs_emb(cond))
        tokens.append(self.input_emb(sample))
        x = self.attnres_backbone(self.drop(torch.cat(tokens, dim=1)))
        return x[:, -self.horizon :]

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """Return AdamW parameter groups. Only the weights of Linear layers decay."""
        decaying = {
            f"{name}.weight" for name, m in self.named_modules() if isinstance(m, nn.Linear)
        }
        named = list(self.named_parameters())
        return [
            {"params": [p for n, p in named if n in decaying], "weight_decay": weight_decay},
            {"params": [p for n, p in named if n not in decaying], "weight_decay": 0.0},
        ]

    def _time_token(self, tau: Tensor) -> Tensor:
        return self.time_token_proj(sinusoidal_time_embedding(tau, self.n_emb))[:, None]


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, mean=0.0, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _check_heads(n_emb: int, n_head: int, n_kv_head: int) -> None:
    if n_head < 1:
        raise ValueError(f"n_head={n_head}: at least one attention head is needed; set n_head >= 1")
    if n_kv_head < 1:
        raise ValueError(f"n_kv_head={n_kv_head}: at least one is needed; set n_kv_head >= 1")
    if n_emb % n_head:
        raise ValueError(
            f"n_emb={n_emb} is not divisible by n_head={n_head}; choose n_emb as a multiple of it"
        )
    if n_head % n_kv_head:
        raise ValueError(
            f"n_head={n_head} is not divisible by n_kv_head={n_kv_head}; "
            f"choose n_kv_head as a divisor of n_head, such as n_kv_head={n_head}"
        )
    if n_emb // n_head % 2:
        raise ValueError(
            f"n_emb={n_emb} / n_head={n_head} gives the odd head dim {n_emb // n_head}, but rotary "
            "positions rotate pairs; choose n_emb as a multiple of 2 * n_head"
        )


def _check_backbone(backbone_type: str, time_as_cond: bool, n_cond_layers: int) -> None:
    if backbone_type not in BACKBONE_TYPES:
        raise ValueError(
            f"backbone_type={backbone_type!r} is unknown; choose one of {', '.join(BACKBONE_TYPES)}"
        )
    if not time_as_cond:
        raise ValueError(
            f"time_as_cond=False: backbone_type={backbone_type!r} takes r and t as tokens; "
            "set time_as_cond=True"
        )
    if n_cond_layers:
        raise ValueError(
            f"n_cond_layers={n_cond_layers}: backbone_type={backbone_type!r} has no condition "
            "encoder; set n_cond_layers=0"
        )
