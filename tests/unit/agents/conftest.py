"""Small agents and batches."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imf_ray.agents.base import VLAAgent
from imf_ray.agents.imf import IMFVLAAgent
from imf_ray.agents.velocity import VelocityAgent

CAMERAS = ("r_vis", "top", "front")


class StubHead(nn.Module):
    """Records its calls; predicts scale * sample, shifted by the mean of the condition."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__()
        self.sizes = sizes
        self.calls: list[dict[str, Tensor]] = []
        self.scale = nn.Parameter(torch.tensor(0.5))

    def forward(self, sample: Tensor, r: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        self.calls.append({"sample": sample, "r": r, "t": t, "cond": cond})
        return self.scale * sample + cond.mean(dim=(1, 2))[:, None, None]


@pytest.fixture
def make_agent() -> Callable[..., Any]:
    def make(agent_class: type[VLAAgent] = IMFVLAAgent, **options: Any) -> VLAAgent:
        torch.manual_seed(0)
        defaults = {
            "action_dim": 16,
            "state_dim": 16,
            "camera_names": CAMERAS,
            "vision_encoder": {
                "stage_widths": (8, 8, 8, 8),
                "blocks_per_stage": (1, 1, 1, 1),
            },
            "head": {"n_emb": 16, "n_layer": 1, "n_head": 1, "n_kv_head": 1}
            | {"p_drop_emb": 0.0, "p_drop_attn": 0.0},
        }
        if issubclass(agent_class, VelocityAgent):  # the easiest times to compute by hand
            defaults["time_sampler"] = "uniform"
        return agent_class(**defaults | options)

    return make


@pytest.fixture
def make_stub_agent(make_agent: Callable[..., Any]) -> Callable[..., Any]:
    return lambda **options: make_agent(head={}, head_factory=StubHead, **options)


@pytest.fixture
def batch() -> dict[str, Any]:
    """Four samples; the last three actions of the first and of the third are padding."""
    generator = torch.Generator().manual_seed(1)
    is_pad = torch.zeros(4, 16, dtype=torch.bool)
    is_pad[::2, -3:] = True
    return {
        "images": {
            name: torch.randint(256, (4, 2, 40, 40, 3), dtype=torch.uint8, generator=generator)
            for name in CAMERAS
        },
        "qpos": torch.randn(4, 2, 16, generator=generator),
        "action": torch.randn(4, 16, 16, generator=generator),
        "action_is_pad": is_pad,
        "noise": torch.randn(4, 16, 16, generator=generator),
        "time_uniforms": torch.rand(4, 3, generator=generator),
        "sample_id": torch.arange(4),
    }
