"""MuJoCo, set up to render without a display.

Modules of `imf_ray.sim` import MuJoCo from here, so that the setup comes first.
"""

import importlib
import os
from contextlib import suppress

# MuJoCo chooses its OpenGL backend at import, and its default needs a display.
os.environ.setdefault("MUJOCO_GL", "egl")

# Mesa's software renderer and triton each load a copy of LLVM. If triton's copy is loaded second,
# the process dies with SIGSEGV. torch imports triton late, when a trunk or an optimizer is made.
with suppress(ImportError):
    importlib.import_module("triton")

EGL_HELP = (
    "MuJoCo cannot render with MUJOCO_GL=egl: the EGL library is missing. On Debian or Ubuntu: "
    "apt-get install libegl1 libgl1-mesa-dri libopengl0"
)

try:
    import mujoco
except AttributeError as error:  # PyOpenGL raises it if the EGL library is missing
    raise RuntimeError(EGL_HELP) from error

__all__ = ["EGL_HELP", "mujoco"]
