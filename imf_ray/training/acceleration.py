"""Faster arithmetic where a device has it: a compiled loss, image encoders in bfloat16."""

from __future__ import annotations

import os
import shutil
import socket

import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.errors import UserError


def compile_loss(agent: VLAAgent, device: torch.device) -> None:
    """Compile the image encoders and what follows them, each at its first batch.

    The latter is the loss as a function of tensors, with the JVP inside if there is one. A JVP of a
    compiled module instead would have no tangents, without a word (pytorch 2.9 to 2.15).

    Raises:
        UserError: the device is a CPU and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"train.compile=true needs a C++ compiler, and {socket.gethostname()} has no "
            f"{compiler}: install it, name another one in CXX, or set train.compile=false."
        )
    from torch import _dynamo  # takes as long as torch itself

    # By default the graph is cut where DDP's buckets of gradients end; a JVP does not survive that.
    _dynamo.config.optimize_ddp = False
    parts: list[tuple[torch.nn.Module, str]] = [(agent, "objective_loss")]
    if agent.vision_encoder is not None:
        parts.append((agent.vision_encoder, "forward"))
    for module, name in parts:
        compiled = torch.compile(getattr(module, name), fullgraph=True, dynamic=False)
        setattr(module, name, compiled)


def check_bf16_support(device: torch.device) -> None:
    """See that a device computes in bfloat16 by itself; where it is emulated, it is slower.

    Raises:
        UserError: it does not.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if not supported:
        raise UserError(
            f"train.encoder_precision=bf16, but the {device.type} device of {socket.gethostname()} has no "
            "bfloat16 arithmetic (a CPU has it with avx512_bf16 or AMX, a GPU from Ampere on): set "
            "train.encoder_precision=none."
        )
