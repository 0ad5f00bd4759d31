"""Optional speed-ups of training: a compiled loss, and image encoders in bfloat16."""

from __future__ import annotations

import os
import shutil
import socket

import torch

from imf_ray.agents.base import VLAAgent
from imf_ray.errors import UserError


def compile_loss(agent: VLAAgent, device: torch.device) -> None:
    """Compile the image encoders and `objective_loss`. Compilation runs at the first batch.

    `objective_loss` takes tensors and computes the JVP inside. A JVP around a compiled module would
    silently lose its tangents (PyTorch 2.9 to 2.15).

    Raises:
        UserError: the device is a CPU and there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"train.compile=true needs a C++ compiler, and {socket.gethostname()} has no "
            f"{compiler}. Install it, set CXX to another compiler, or set train.compile=false."
        )
    from torch import _dynamo  # its import takes as long as that of torch

    # By default, the graph is split at the ends of DDP's gradient buckets, which breaks the JVP.
    _dynamo.config.optimize_ddp = False
    functions: list[tuple[torch.nn.Module, str]] = [(agent, "objective_loss")]
    if agent.vision_encoder is not None:
        functions.append((agent.vision_encoder, "forward"))
    for module, name in functions:
        compiled = torch.compile(getattr(module, name), fullgraph=True, dynamic=False)
        setattr(module, name, compiled)


def check_bf16_support(device: torch.device) -> None:
    """Check that a device has native bfloat16 arithmetic. Emulation is slower than float32.

    Raises:
        UserError: the device has none.
    """
    if device.type == "cuda":
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    if not supported:
        raise UserError(
            f"train.encoder_precision=bf16, but the {device.type} device of {socket.gethostname()} "
            "has no bfloat16 arithmetic (CPUs with avx512_bf16 or AMX and GPUs from Ampere on "
            "have it). Set train.encoder_precision=fp32."
        )
