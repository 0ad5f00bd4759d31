"""Optional faster arithmetic: a compiled loss, and image encoders in bfloat16."""

from __future__ import annotations

import os
import shutil
import socket

import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.errors import UserError


def compile_loss(agent: VLAAgent, device: torch.device) -> None:
    """Compile the image encoders and `objective_loss`, each at its first batch.

    `objective_loss` is a function of tensors with the JVP inside. A JVP of a compiled module has no
    tangents and raises no error (PyTorch 2.9 to 2.15).

    Raises:
        UserError: the device is a CPU and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"train.compile=true needs a C++ compiler, and {socket.gethostname()} has no "
            f"{compiler}: install it, name another compiler in CXX, or set train.compile=false."
        )
    from torch import _dynamo  # its import takes as long as that of torch

    # By default, the graph breaks where DDP's gradient buckets end, which a JVP does not survive.
    _dynamo.config.optimize_ddp = False
    parts: list[tuple[torch.nn.Module, str]] = [(agent, "objective_loss")]
    if agent.vision_encoder is not None:
        parts.append((agent.vision_encoder, "forward"))
    for module, name in parts:
        compiled = torch.compile(getattr(module, name), fullgraph=True, dynamic=False)
        setattr(module, name, compiled)


def check_bf16_support(device: torch.device) -> None:
    """Check that a device has bfloat16 arithmetic; an emulated one is slower than float32.

    Raises:
        UserError: it has none.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if not supported:
        raise UserError(
            f"train.encoder_precision=bf16, but the {device.type} device of {socket.gethostname()} "
            "has no bfloat16 arithmetic (CPUs with avx512_bf16 or AMX and GPUs from Ampere on "
            "have it): set train.encoder_precision=fp32."
        )
