"""The standard transformer head: an encoder-decoder over [time, condition...] and action tokens."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from imf_ray.models.imf_transformer import sinusoidal_time_embedding

INIT_STD = 0.02
"""Standard deviation of initial weights, as in Diffusion Policy."""


class Transformer1D(nn.Module):
    """The transformer of "Diffusion Policy" (arXiv 2303.04137), with one timestep per action chunk.

    Layout, initialization and state-dict keys match Diffusion Policy's transformer, so that its
    weights load. An encoder reads the timestep's sinusoidal embedding and the condition tokens. A
    pre-norm decoder of the action tokens attends to the encoder's output. Both have learned
    positions.

    Args:
        input_dim: width of a noisy action.
        output_dim: width of a prediction.
        horizon: actions in a chunk.
        n_obs_steps: condition tokens in a sequence; None means as many as the horizon.
        cond_dim: width of a condition token; 0 for an unconditional head.
        n_layer, n_head, n_emb: decoder layers, attention heads and width.
        p_drop_emb, p_drop_attn: dropout of the embeddings, and inside the layers.
        causal_attn: let action i attend only to actions 0 ... i, the timestep, and condition tokens
            0 ... i. Condition token i must then belong to the same environment step as action i, so
            there must be one token per observation step.
        time_as_cond: pass the timestep as a condition token; must be True for this head.
        obs_as_cond: ignored, and accepted for compatibility with Diffusion Policy. Observations
            are a condition if cond_dim > 0.
        n_cond_layers: self-attention layers of the encoder; 0 uses Linear-Mish-Linear per token.

    Raises:
        ValueError: an impossible combination of options.
    """

    takes_time_interval: ClassVar[bool] = False
    """True if `forward` takes the ends (r, t) of a time interval, False if one timestep."""

    mask: Tensor
    memory_mask: Tensor

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        horizon: int,
        n_obs_steps: int | None = None,
        cond_dim: int = 0,
        n_layer: int = 12,
        n_head: int = 12,
        n_emb: int = 768,
        p_drop_emb: float = 0.1,
        p_drop_attn: float = 0.1,
        causal_attn: bool = False,
        time_as_cond: bool = True,
        obs_as_cond: bool = False,
        n_cond_layers: int = 0,
    ) -> None:
        super().__init__()
        _check_options(n_emb, n_head, time_as_cond)
        n_cond_tokens = (horizon if n_obs_steps is None else n_obs_steps) if cond_dim > 0 else 0
        n_memory_tokens = 1 + n_cond_tokens
        layer_options: dict[str, Any] = {
            "d_model": n_emb,
            "nhead": n_head,
            "dim_feedforward": 4 * n_emb,
            "dropout": p_drop_attn,
            "activation": "gelu",
            "batch_first": True,
            "norm_first": True,
        }

        self.n_emb = n_emb
        self.obs_as_cond = cond_dim > 0
        self.causal_attn = causal_attn
        # A key of Diffusion Policy's state dict. Not trainable, because DDP would wait for its
        # gradient.
        self._dummy_variable = nn.Parameter(torch.empty(0), requires_grad=False)
        self.input_emb = nn.Linear(input_dim, n_emb)
        self.pos_emb = nn.Parameter(torch.empty(1, horizon, n_emb))
        self.cond_obs_emb = nn.Linear(cond_dim, n_emb) if self.obs_as_cond else None
        self.cond_pos_emb = nn.Parameter(torch.empty(1, n_memory_tokens, n_emb))
        self.drop = nn.Dropout(p_drop_emb)
        self.encoder: nn.Module
        if n_cond_layers > 0:
            self.encoder = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(**layer_options),
                num_layers=n_cond_layers,
                enable_nested_tensor=False,  # True is unsupported for pre-norm and warns
            )
        else:
            self.encoder = nn.Sequential(
                nn.Linear(n_emb, 4 * n_emb), nn.Mish(), nn.Linear(4 * n_emb, n_emb)
            )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(**layer_options), num_layers=n_layer
        )
        self.ln_f = nn.LayerNorm(n_emb)
        self.head = nn.Linear(n_emb, output_dim)
        if causal_attn:
            # True masks a token. Diffusion Policy stores 0 and -inf, which load into booleans as
            # False and True. EMA would turn infinities of a float mask into NaN.
            action = torch.arange(horizon)[:, None]
            self.register_buffer("mask", torch.arange(horizon) > action)
            if self.obs_as_cond:
                # The timestep is memory token 0, so condition token i is memory token i + 1.
                self.register_buffer("memory_mask", torch.arange(n_memory_tokens) > action + 1)

        self.apply(_init_weights)
        nn.init.normal_(self.pos_emb, std=INIT_STD)
        nn.init.normal_(self.cond_pos_emb, std=INIT_STD)

    def forward(self, sample: Tensor, timestep: Tensor, cond: Tensor | None = None) -> Tensor:
        """Predict the noise (or another target of DDPM) of a noisy chunk.

        Args:
            sample: noisy actions (B, horizon, input_dim).
            timestep: (B,) from 0 to the number of noise levels - 1, not scaled.
            cond: condition tokens (B, n_obs_steps, cond_dim); required if and only if cond_dim > 0.

        Returns:
            (B, horizon, output_dim).

        Raises:
            ValueError: cond is missing, or passed to an unconditional head.
        """
        if (cond is not None) != self.obs_as_cond:
            raise ValueError(
                "cond is required: the head was built with cond_dim > 0; pass condition tokens"
                if self.obs_as_cond
                else "cond is given to a head built with cond_dim=0; build it with cond_dim > 0"
            )
        memory = sinusoidal_time_embedding(timestep.to(sample.dtype), self.n_emb)[:, None]
        if self.cond_obs_emb is not None:
            memory = torch.cat((memory, self.cond_obs_emb(cond)), dim=1)
        memory = self.encoder(self.drop(memory + self.cond_pos_emb))
        x = self.decoder(
            self.drop(self.input_emb(sample) + self.pos_emb),
            memory,
            tgt_mask=self.mask if self.causal_attn else None,
            memory_mask=self.memory_mask if self.causal_attn and self.obs_as_cond else None,
            tgt_is_causal=self.causal_attn,  # otherwise torch compares masks and syncs the GPU
        )
        return self.head(self.ln_f(x))

    def get_optim_groups(self, weight_decay: float = 1e-3) -> list[dict[str, Any]]:
        """Return AdamW parameter groups. Only the weights of Linear and attention layers decay."""
        decaying = {
            id(parameter)
            for module in self.modules()
            if isinstance(module, nn.Linear | nn.MultiheadAttention)
            for name, parameter in module.named_parameters(recurse=False)
            if name.endswith("weight")
        }
        parameters = list(self.parameters())
        return [
            {"params": [p for p in parameters if id(p) in decaying], "weight_decay": weight_decay},
            {"params": [p for p in parameters if id(p) not in decaying], "weight_decay": 0.0},
        ]


def _init_weights(module: nn.Module) -> None:
    """Initialize weights as normal and biases as zero. LayerNorm keeps torch's initialization."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=INIT_STD)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.MultiheadAttention):
        nn.init.normal_(module.in_proj_weight, std=INIT_STD)
        nn.init.zeros_(module.in_proj_bias)


def _check_options(n_emb: int, n_head: int, time_as_cond: bool) -> None:
    if n_head < 1:
        raise ValueError(f"n_head={n_head}: at least one attention head is needed; set n_head >= 1")
    if n_emb % n_head:
        raise ValueError(
            f"n_emb={n_emb} is not divisible by n_head={n_head}; choose n_emb as a multiple of it"
        )
    if n_emb % 2:
        raise ValueError(
            f"n_emb={n_emb} is odd, but the time embedding is half sines and half cosines; "
            "choose an even n_emb"
        )
    if not time_as_cond:
        raise ValueError(
            "time_as_cond=False: backbone_type='transformer' takes the timestep as a condition "
            "token; set time_as_cond=True"
        )
