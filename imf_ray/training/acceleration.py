"""Optional speed-ups of training: a compiled loss, and image encoders in bfloat16."""

from __future__ import annotations

import logging
import os
import shutil
import socket

import torch
from platformdirs import user_cache_path

from imf_ray.agents.base import VLAAgent
from imf_ray.errors import UserError

CACHE_VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable with the folder for compiled code."""
log = logging.getLogger(__name__)


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

    _keep_compiled_code()
    # By default, the graph is split at the ends of DDP's gradient buckets, which breaks the JVP.
    _dynamo.config.optimize_ddp = False
    functions: list[tuple[torch.nn.Module, str]] = [(agent, "objective_loss")]
    if agent.vision_encoder is not None:
        functions.append((agent.vision_encoder, "forward"))
    for module, name in functions:
        compiled = torch.compile(getattr(module, name), fullgraph=True, dynamic=False)
        setattr(module, name, compiled)


def _keep_compiled_code() -> None:
    """Put compiled code into the user's cache folder for later runs, unless the user chose one.

    PyTorch's own folder is in /tmp, which a reboot clears. It is used if the other is not writable.
    """
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    default = default_cache_dir()  # PyTorch sets the variable to it on import
    if os.environ.get(CACHE_VARIABLE, default) != default:
        return
    folder = user_cache_path("imf_ray") / "inductor"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        log.warning("Compiled code is kept in %s only, because of: %s", default, error)
        return
    os.environ[CACHE_VARIABLE] = str(folder)


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
